"""Checkpoints of models that are trained beside the policy: each is written before the policy's of the same step."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cupola_platform.errors import CorruptArtifactError
from cupola_trainer import checkpoint, runtime
from cupola_trainer.checkpoint import Progress
from cupola_trainer.checkpoint.folders import step_folder
from cupola_trainer.config import ModelConfig
from cupola_trainer.objectives.inputs import ObjectiveInputs


class CompanionCheckpoints:
    """A folder of such checkpoints of one model, in the job's folder."""

    def __init__(self, inputs: ObjectiveInputs, name: str, model: ModelConfig) -> None:
        """
        Args:
            name: of the folder.
        """
        self.inputs, self.name, self.model = inputs, name, model
        self.folder = inputs.output / name

    def save(
        self,
        progress: Progress,
        chunks: Sequence[torch.nn.Module],
        tokenizer: Path | None = None,
        optimizer: Any = None,
        scheduler: Any = None,
    ) -> None:
        """Save, and remove those whose policy's checkpoint is gone. Every rank calls it."""
        checkpoint.save(
            step_folder(self.folder, progress.step),
            chunks,
            model=self.model,
            layout=self.inputs.layout,
            step=progress.step,
            consumed_samples=progress.consumed_samples,
            seed=self.inputs.seed,
            objective=self.name,
            tokenizer=tokenizer,
            optimizer=optimizer,
            scheduler=scheduler,
        )
        runtime.on_first_rank(lambda: self._prune(progress.step))

    def _prune(self, step: int) -> None:
        policies = {folder.name for folder in (self.inputs.output / "checkpoints").glob("step_*")}
        for folder in self.folder.glob("step_*"):
            if folder.name not in policies and folder.name != step_folder(self.folder, step).name:
                shutil.rmtree(folder)

    def at(self, progress: Progress, what: str) -> Path:
        """The checkpoint of that step.

        Raises:
            CorruptArtifactError: it is gone; the model in it, `what`, never starts afresh beside a trained policy.
        """
        folder = step_folder(self.folder, progress.step)
        if not runtime.on_first_rank(folder.is_dir):
            raise CorruptArtifactError(
                f"{folder} is missing: {what} that goes with the policy of step {progress.step}. Put it back, or "
                "start a new job from the policy's weights."
            )
        return folder
