"""Resume from the newest complete checkpoint. Torn ones are set aside, unfinished ones removed."""

import logging
import shutil
from pathlib import Path

from cupola_platform.errors import CorruptArtifactError
from cupola_trainer import checkpoint, runtime
from cupola_trainer.checkpoint import Progress
from cupola_trainer.optim import Trainee

TORN = "torn"
"""Subfolder for checkpoints that do not verify."""

log = logging.getLogger(__name__)


def resume(checkpoints: Path, trainee: Trainee) -> Progress:
    """Load the newest checkpoint that verifies; start at step 0 if there is none. Called on every rank."""
    runtime.on_first_rank(lambda: _remove_unfinished(checkpoints))
    while True:
        newest = runtime.on_first_rank(lambda: max(checkpoints.glob("step_*"), default=None))
        if newest is None:
            return Progress()
        try:
            progress = checkpoint.load_training(newest, trainee.chunks, trainee.optimizer, trainee.scheduler)
        except CorruptArtifactError as error:
            log.warning("%s set aside under %s/: %s", newest.name, TORN, error)
            runtime.on_first_rank(lambda folder=newest: _set_aside(folder))  # type: ignore[misc]
        else:
            log.info("resuming from %s", newest)
            return progress


def _set_aside(folder: Path) -> None:
    aside = folder.parent / TORN / folder.name
    shutil.rmtree(aside, ignore_errors=True)
    aside.parent.mkdir(exist_ok=True)
    folder.rename(aside)


def _remove_unfinished(checkpoints: Path) -> None:
    for partial in checkpoints.glob(".step_*.partial"):
        shutil.rmtree(partial)
