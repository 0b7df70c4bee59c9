"""What a job's data are, so that a resumed job is the same job: the mixture, its content, and who tokenized it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from cupola_platform import artifacts
from cupola_platform.artifacts.digests import digest_bytes, digest_files
from cupola_platform.errors import ConfigError, NotFoundError
from cupola_trainer.checkpoint.compatibility import check_architecture, shortened
from cupola_trainer.checkpoint.description import read_model, read_training
from cupola_trainer.config import ModelConfig, TrainJob

FINGERPRINTED = False  # refuses, and computes nothing


def data_identity(job: TrainJob) -> dict[str, Any]:
    """All that decides which tokens the job reads in which order; plain JSON, without paths."""
    settings = {name: _without_paths(value) for name, value in job.data}
    order = {
        "seed": job.seed,
        "template_date": job.template_date.isoformat() if job.template_date else None,
        "sequence_length": job.batch.sequence_length,
        "samples": job.steps * job.batch.global_batch_size,
    }
    return json.loads(json.dumps(settings | order | {"objective": job.objective_name}))  # type: ignore[no-any-return]


def check_resumable(checkpoints: Path, model: ModelConfig, data: dict[str, Any]) -> None:
    """Refuse to go on from a checkpoint of another architecture or of other data. Changes nothing.

    Looks at the newest checkpoint; one that cannot be read is left to `resume`, which sets it aside.

    Args:
        data: `data_identity` of the job; empty where another mixture is allowed.

    Raises:
        ConfigError: names what differs.
    """
    newest = max(checkpoints.glob("step_*"), default=None)
    if newest is None:
        return
    try:
        saved_model, saved = read_model(newest), read_training(newest).get("data", {})
    except (OSError, ValueError, NotFoundError):
        return
    check_architecture(newest, model, saved_model)
    for name, value in data.items():
        if saved.get(name) != value:
            raise ConfigError(
                f"{newest} was trained on other data: {name}={shortened(saved.get(name))}, now {shortened(value)}. "
                "Put it back, start a new job from its weights, or allow the change (--allow-data-change)."
            )


def _without_paths(value: Any) -> Any:
    """A setting with the content of folders in the place of their paths."""
    if isinstance(value, Path):
        return _content(value)
    if isinstance(value, tuple):
        return [_without_paths(part) for part in value]
    if isinstance(value, BaseModel):
        return {name: _without_paths(part) for name, part in value}
    if dataclasses.is_dataclass(value):
        return {field.name: _without_paths(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


def _content(folder: Path) -> str:
    """An artifact's digest; of a folder that is none, that of its files' names and sizes and of its index."""
    if (folder / artifacts.MANIFEST).is_file():
        return artifacts.read(folder).digest
    files = [
        (path.relative_to(folder).as_posix(), str(path.stat().st_size)) for path in folder.rglob("*") if path.is_file()
    ]
    index = folder / "index.json"
    return digest_files([*files, ("index", digest_bytes(index.read_bytes()) if index.is_file() else "")])
