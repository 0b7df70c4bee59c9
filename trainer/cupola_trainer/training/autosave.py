"""Save checkpoints during training: asynchronously, one at a time, removing old ones."""

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cupola_platform.errors import StageFailedError
from cupola_trainer.checkpoint import Checkpointer, Progress, Save, SaveFailedError
from cupola_trainer.checkpoint.folders import step_folder, step_of
from cupola_trainer.checkpoint.staging import Staging, host_memory
from cupola_trainer.config import CheckpointConfig, ModelConfig, TrainJob
from cupola_trainer.optim import Trainee
from cupola_trainer.reporting.metrics import MetricsWriter
from cupola_trainer.runtime import folders

FINGERPRINTED = False  # decides when to save

TOLERATED = 1
"""Saves in a row that may fail. More would be a disk that stays full or a folder that this node cannot write, and a job
that trains on would lose everything since its last checkpoint."""

log = logging.getLogger(__name__)


def is_due(every: int, step: int, last: int) -> bool:
    """Whether something done `every` so many steps, and at the last one, is due after `step`. 0: the last step only."""
    return step == last or (every > 0 and step % every == 0)


def prune(checkpoints: Path, config: CheckpointConfig, last: int) -> None:
    """Remove all but the newest `keep` checkpoints and every `keep_every`-th step's. Called once for each folder.

    A checkpoint saved on interruption, off schedule, goes as soon as there is a newer one, so that the scheduled ones
    kept do not depend on interruptions. Folders are renamed at once; a thread deletes them, which is slow for large
    files.
    """
    *older, _ = saved = sorted(checkpoints.glob("step_*"))
    due = [folder for folder in saved if is_due(config.every, step_of(folder), last)]
    for old in older:
        kept = old in due and config.keep_every and step_of(old) % config.keep_every == 0
        if old not in due[-config.keep :] and not kept:
            gone = old.rename(old.with_name(f".{old.name}.partial"))  # `resume` removes it if the job is killed here
            threading.Thread(target=shutil.rmtree, args=(gone, True), name=f"remove {old.name}").start()


class Autosave:
    """Saves a job's checkpoints. A failed save is reported and training continues; a second one in a row ends the job,
    and the last one must succeed."""

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
        """`beat` is called while waiting for a save."""
        self.job, self.model, self.tokenizer, self.objective = job, model, tokenizer, objective
        self.metrics, self.beat = metrics, beat
        self.folder = job.output / "checkpoints"
        self.limit = int(job.checkpoint.host_memory * 2**30)
        self.checkpointer = Checkpointer(
            trainee.chunks, trainee.optimizer, trainee.scheduler, staging=Staging(self.limit)
        )
        self.saved_step = 0
        """Step of the newest complete checkpoint."""
        self._told = False
        self._failures = 0
        """Saves in a row that failed."""
        self._save: Save | None = None
        self._step = 0
        self._stalled = 0.0
        self._started = 0.0

    def begin(self, progress: Progress, extra: Mapping[str, Any]) -> None:
        """Start saving the current state while training continues. Called on every rank."""
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
        if not self._told:
            self._tell_host_memory()

    def _tell_host_memory(self) -> None:
        """Log how much host memory the saves of this job take."""
        self._told = True
        sizes = self.checkpointer.share.sizes
        process, node = host_memory(sizes, self.limit, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        log.info("a save takes %.2f GiB of host memory a process, %.2f GiB a node", process / 2**30, node / 2**30)
        if (largest := max(map(sum, sizes))) > self.limit:
            log.info(
                "a process writes %.2f GiB: after a save, the next update waits until all but checkpoint.host_memory="
                "%g GiB is on disk",
                largest / 2**30,
                self.job.checkpoint.host_memory,
            )

    def before_update(self) -> None:
        """Wait until weights and moments are copied: the optimizer is about to change them."""
        if self._save:
            began = time.monotonic()
            self._save.wait_until_copied(self.beat)
            self._stalled += time.monotonic() - began

    def look(self) -> None:
        """Finish a save whose files are written. Called between steps, on every rank."""
        if self._save and self._save.ready():
            self.wait()

    def wait(self, *, last: bool = False) -> None:
        """Wait until nothing is being written. Called on every rank.

        Raises:
            StageFailedError: the save failed, and it is the `last` one or the one before failed too.
        """
        if self._save is None:
            return
        save, self._save = self._save, None
        began = time.monotonic()
        try:
            save.finish(self.beat)
        except SaveFailedError as error:
            self._failures += 1
            whole = step_folder(self.folder, self.saved_step) if self.saved_step else "none"
            self.metrics.write("checkpoint_failed", step=self._step, reason=str(error))
            log.error("%s Newest complete checkpoint: %s.", error, whole)
            if last or self._failures > TOLERATED:
                often = f"{self._failures} saves in a row failed. " if self._failures > 1 else ""
                raise StageFailedError(
                    f"{often}{error} Newest complete checkpoint: {whole}. Make room in {self.folder} and make it "
                    "writable for every rank, then run the same command: it resumes from there."
                ) from None
            return
        self._failures = 0
        self.saved_step = self._step
        now = time.monotonic()
        self.metrics.write(
            "checkpoint",
            step=self._step,
            path=str(save.folder.relative_to(self.job.output)),
            seconds=now - self._started,
            stalled_seconds=self._stalled + now - began,
            host_bytes=self.checkpointer.staging.nbytes,
        )
        folders.on_each_folder(lambda: prune(self.folder, self.job.checkpoint, self.job.steps))
