"""Checkpoints of models that go with the one in training: written before its own of the same step, gone when it is."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cupola_platform.errors import CorruptArtifactError
from cupola_trainer import checkpoint, runtime
from cupola_trainer.checkpoint import Progress
from cupola_trainer.config import ModelConfig, TrainJob
from cupola_trainer.keeping import step_folder


class Beside:
    """A folder of such checkpoints."""

    def __init__(self, job: TrainJob, name: str, model: ModelConfig) -> None:
        """
        Args:
            name: of the folder in the job's.
        """
        self.job, self.name, self.model = job, name, model
        self.folder = job.output / name

    def save(
        self,
        progress: Progress,
        chunks: Sequence[torch.nn.Module],
        tokenizer: Path | None = None,
        optimizer: Any = None,
        scheduler: Any = None,
    ) -> None:
        """Save, before the policy's checkpoint of the same step; those without one go. Every rank calls it."""
        checkpoint.save(
            step_folder(self.folder, progress.step),
            chunks,
            model=self.model,
            parallel=self.job.parallel,
            step=progress.step,
            consumed_samples=progress.consumed_samples,
            seed=self.job.seed,
            objective=self.name,
            tokenizer=tokenizer,
            optimizer=optimizer,
            scheduler=scheduler,
        )
        runtime.on_first_rank(lambda: self._prune(progress.step))

    def _prune(self, step: int) -> None:
        policies = {folder.name for folder in (self.job.output / "checkpoints").glob("step_*")}
        for folder in self.folder.glob("step_*"):
            if folder.name not in policies and folder.name != step_folder(self.folder, step).name:
                shutil.rmtree(folder)

    def at(self, progress: Progress, what: str) -> Path:
        """The checkpoint of that step.

        Raises:
            CorruptArtifactError: it is gone: `what` it holds never starts afresh beside the policy.
        """
        folder = step_folder(self.folder, progress.step)
        if not runtime.on_first_rank(folder.is_dir):
            raise CorruptArtifactError(
                f"{folder} is missing: {what} that goes with the policy of step {progress.step}. Put it back, or "
                "start a new job from the policy's weights."
            )
        return folder
