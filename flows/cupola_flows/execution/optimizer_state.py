"""The optimizer state of trained checkpoints: published beside the weights, which are all that later stages read."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from cupola_flows.execution.context import StageContext
from cupola_platform import artifacts
from cupola_platform.artifacts import Artifact
from cupola_platform.artifacts.digests import digest_files
from cupola_platform.artifacts.elsewhere import Elsewhere, absent
from cupola_platform.durable import link
from cupola_platform.errors import ConfigError, NotFoundError
from cupola_platform.workspace import Workspace
from cupola_trainer.config import OPTIMIZER


def split_off(ctx: StageContext, checkpoint: Path, *, publish: bool) -> Artifact:
    """Move the optimizer state out of a job's checkpoint, and publish it as an artifact whose parent is the rest.

    No large file is copied or hashed again, nor fetched if it is in the store only. The state is published first, so
    that a stage whose checkpoint is in the store has published both; a killed run goes on where it stopped.

    Args:
        publish: False removes the state.

    Returns:
        The checkpoint without it, sealed, to publish.
    """
    whole = artifacts.read(checkpoint).manifest
    prefix = f"{OPTIMIZER}/"
    weights = {path: entry for path, entry in whole.known.items() if not path.startswith(prefix)}
    moments = {path.removeprefix(prefix): entry for path, entry in whole.known.items() if path.startswith(prefix)}
    there = Elsewhere.read(checkpoint)
    state = ctx.folder / OPTIMIZER
    if (checkpoint / OPTIMIZER).is_dir():
        shutil.rmtree(state, ignore_errors=True)
        (checkpoint / OPTIMIZER).rename(state)
    if publish and state.is_dir():
        digest = digest_files((path, digest) for path, (_, digest) in weights.items())
        if there:
            Elsewhere(at=f"{there.at}/{OPTIMIZER}").write(state)
            artifacts.seal(state, kind=OPTIMIZER, known=moments, elsewhere=_absent(state, moments))
        ctx.publish_aside(state, kind=OPTIMIZER, parents=[digest], metrics={}, known=moments)
    shutil.rmtree(state, ignore_errors=True)
    elsewhere = _absent(checkpoint, weights) if there else {}
    return artifacts.seal(checkpoint, kind=whole.kind, config=whole.config, known=weights, elsewhere=elsewhere)


def _absent(folder: Path, known: Mapping[str, tuple[int, str]]) -> dict[str, tuple[int, str]]:
    return {path: known[path] for path in absent(folder, list(known))}


def restore(ws: Workspace, checkpoint: Artifact, job: Path) -> Path:
    """Put a published checkpoint and its optimizer state together in a job's folder, which resumes from it.

    Made of hard links where the file system has them.

    Returns:
        The folder, equal to the one that the training job saved.

    Raises:
        ConfigError: the job's folder has that checkpoint already.
        NotFoundError: there is no optimizer state of this checkpoint.
    """
    optimizer = _published_with(ws, checkpoint)
    training = json.loads((checkpoint.path / "training.json").read_bytes())
    folder = job / "checkpoints" / f"step_{training['step']:08d}"
    if folder.exists():
        raise ConfigError(f"{folder} exists already. Give another folder, or remove it.")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    known = checkpoint.manifest.known
    for source, inside in ((checkpoint, Path()), (optimizer, Path(OPTIMIZER))):
        for file in source.manifest.files:
            link(source.path / file.path, partial / inside / file.path)
            known[(inside / file.path).as_posix()] = (file.size, file.blake3)
    artifacts.seal(partial, kind="checkpoint", config=training, known=known)
    partial.rename(folder)
    return folder


def _published_with(ws: Workspace, checkpoint: Artifact) -> Artifact:
    for row in reversed(ws.registry.children(checkpoint.digest)):
        if row.kind == OPTIMIZER and ws.use(row.digest) and ws.store.holds(row.digest):
            return artifacts.verify(ws.store.get(row.digest).path)
    raise NotFoundError(
        f"There is no optimizer state of {checkpoint.kind} {checkpoint.id}: it was not published "
        "(checkpoint.publish_optimizer), or has been removed. Start a new job from the weights (parent)."
    )
