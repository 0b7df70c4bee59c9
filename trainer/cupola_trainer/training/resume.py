"""Resume from the newest complete checkpoint. Torn ones are set aside, unfinished ones removed."""

import logging
import shutil
from pathlib import Path

from cupola_platform.errors import CorruptArtifactError
from cupola_trainer import checkpoint, runtime
from cupola_trainer.checkpoint import Progress
from cupola_trainer.optim import Trainee
from cupola_trainer.runtime import folders

TORN = "torn"
"""Subfolder for checkpoints that do not verify."""

log = logging.getLogger(__name__)


def resume(checkpoints: Path, trainee: Trainee) -> Progress:
    """Load the newest checkpoint that verifies; start at step 0 if there is none. Called on every rank."""
    folders.on_each_folder(lambda: _remove_unfinished(checkpoints))
    while True:
        name = runtime.on_first_rank(lambda: max((folder.name for folder in checkpoints.glob("step_*")), default=None))
        if name is None:
            return Progress()
        newest = checkpoints / name
        try:
            progress = checkpoint.load_training(newest, trainee.chunks, trainee.optimizer, trainee.scheduler)
        except CorruptArtifactError as error:
            log.warning("%s set aside under %s/: %s", newest.name, TORN, error)
            folders.on_each_folder(lambda folder=newest: _set_aside(folder))  # type: ignore[misc]
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
