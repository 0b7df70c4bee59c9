"""Identify a job's data, so that a job resumes on the same data: the mixture, its content and its tokenizer."""

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
from cupola_trainer.data.pretraining.tokens import ORDER

FINGERPRINTED = False  # only checks, computes nothing


def data_identity(job: TrainJob) -> dict[str, Any]:
    """Everything that determines which tokens the job reads in which order; serializable as JSON, without paths."""
    settings = {name: _without_paths(value) for name, value in job.data}
    order = {
        "seed": job.seed,
        "template_date": job.template_date.isoformat() if job.template_date else None,
        "sequence_length": job.batch.sequence_length,
        "global_batch_size": job.batch.global_batch_size,
    } | ({"sample_order": ORDER} if any(getattr(job.data, name, None) for name in ("tokens", "pretraining")) else {})
    return json.loads(json.dumps(settings | order | {"objective": job.objective_name}))  # type: ignore[no-any-return]


def check_resumable(checkpoints: Path, model: ModelConfig, data: dict[str, Any]) -> None:
    """Refuse to resume from a checkpoint with another architecture or other data. Changes nothing.

    Only the newest checkpoint is checked. One that cannot be read is left to `resume`, which sets it aside.

    Args:
        data: `data_identity` of the job; empty if other data are allowed.

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
                "Restore it, start a new job from its weights, or allow the change (--allow-data-change)."
            )


def _without_paths(value: Any) -> Any:
    """A setting in which paths are replaced by a digest of their content."""
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
    """An artifact's digest; for any other folder, a digest of its files' names and sizes and of its index."""
    if (folder / artifacts.MANIFEST).is_file():
        return artifacts.read(folder).digest
    files = [
        (path.relative_to(folder).as_posix(), str(path.stat().st_size)) for path in folder.rglob("*") if path.is_file()
    ]
    index = folder / "index.json"
    return digest_files([*files, ("index", digest_bytes(index.read_bytes()) if index.is_file() else "")])
