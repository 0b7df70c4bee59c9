"""A job's checkpoints while it trains: written beside the next steps, one at a time, and removed when they are old."""

import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cupola_platform.errors import StageFailedError
from cupola_trainer import runtime
from cupola_trainer.checkpoint import Checkpointer, Progress, Save, SaveFailedError
from cupola_trainer.checkpoint.folders import step_folder, step_of
from cupola_trainer.config import CheckpointConfig, ModelConfig, TrainJob
from cupola_trainer.optim import Trainee
from cupola_trainer.reporting.metrics import MetricsWriter

FINGERPRINTED = False  # decides when to save

log = logging.getLogger(__name__)


def is_due(every: int, step: int, last: int) -> bool:
    """Whether something that is done every so many steps, and at the last one, is done after `step`; 0:
    at the last one only."""
    return step == last or (every > 0 and step % every == 0)


def prune(checkpoints: Path, config: CheckpointConfig, last: int) -> None:
    """Remove all but the newest `keep` checkpoints and every `keep_every`-th step's. The first rank calls it.

    What an interruption saved between two that are due goes when there is a newer one: those that are due are the same,
    interrupted or not. They lose their names at once; a thread frees the space, which takes long for large files.
    """
    *older, _ = saved = sorted(checkpoints.glob("step_*"))
    due = [folder for folder in saved if is_due(config.every, step_of(folder), last)]
    for old in older:
        kept = old in due and config.keep_every and step_of(old) % config.keep_every == 0
        if old not in due[-config.keep :] and not kept:
            gone = old.rename(old.with_name(f".{old.name}.partial"))  # what a killed job leaves of it, `resume` removes
            threading.Thread(target=shutil.rmtree, args=(gone, True), name=f"remove {old.name}").start()


class Autosave:
    """Saves a job. A save that fails in between is reported and training goes on; the last one must succeed."""

    def __init__(
        self,
        job: TrainJob,
        model: ModelConfig,
        tokenizer: Path | None,
        objective: str,
        trainee: Trainee,
        metrics: MetricsWriter,
        beat: Callable[[], None],
    ) -> None:
        """`beat` is called while a save is waited for."""
        self.job, self.model, self.tokenizer, self.objective = job, model, tokenizer, objective
        self.metrics, self.beat = metrics, beat
        self.folder = job.output / "checkpoints"
        self.checkpointer = Checkpointer(trainee.chunks, trainee.optimizer, trainee.scheduler)
        self.saved_step = 0
        """Of the newest checkpoint that is whole."""
        self._save: Save | None = None
        self._step = 0
        self._stalled = 0.0
        self._started = 0.0

    def begin(self, progress: Progress, extra: Mapping[str, Any]) -> None:
        """Save this moment while training goes on. Every rank calls it."""
        self.wait()
        self._started = time.monotonic()
        self._step = progress.step
        self._save = self.checkpointer.begin(
            step_folder(self.folder, progress.step),
            model=self.model,
            layout=self.job.layout,
            step=progress.step,
            consumed_samples=progress.consumed_samples,
            seed=self.job.seed,
            objective=self.objective,
            tokenizer=self.tokenizer,
            extra=extra,
        )
        self._stalled = time.monotonic() - self._started

    def before_update(self) -> None:
        """Weights and moments are about to change: wait until they are copied."""
        if self._save:
            began = time.monotonic()
            self._save.wait_until_copied()
            self._stalled += time.monotonic() - began

    def look(self) -> None:
        """Between steps: make what has been written a checkpoint. Every rank calls it."""
        if self._save and self._save.ready():
            self.wait()

    def wait(self, *, last: bool = False) -> None:
        """Until nothing is being written. Every rank calls it.

        Raises:
            StageFailedError: the save failed, and it is the `last` one.
        """
        if self._save is None:
            return
        save, self._save = self._save, None
        began = time.monotonic()
        try:
            save.finish(self.beat)
        except SaveFailedError as error:
            whole = f"step {self.saved_step}" if self.saved_step else "none"
            self.metrics.write("checkpoint_failed", step=self._step, reason=str(error))
            log.error("%s The newest whole checkpoint: %s.", error, whole)
            if last:
                raise StageFailedError(
                    f"{error} Newest whole checkpoint: {whole}. Make room and start again."
                ) from None
            return
        self.saved_step = self._step
        now = time.monotonic()
        self.metrics.write(
            "checkpoint",
            step=self._step,
            path=str(save.folder.relative_to(self.job.output)),
            seconds=now - self._started,
            stalled_seconds=self._stalled + now - began,
        )
        runtime.on_first_rank(lambda: prune(self.folder, self.job.checkpoint, self.job.steps))
