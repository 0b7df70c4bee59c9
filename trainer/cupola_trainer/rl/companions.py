"""Checkpoints of models trained along with the policy, each written before the policy's of the same step."""

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
from cupola_trainer.runtime import folders


class CompanionCheckpoints:
    """The checkpoints of one such model, in a subfolder of the job's folder."""

    def __init__(self, inputs: ObjectiveInputs, name: str, model: ModelConfig) -> None:
        """
        Args:
            name: name of the subfolder.
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
        """Save a checkpoint, and remove those whose policy checkpoint is gone. Called on every rank."""
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
        folders.on_each_folder(lambda: self._prune(progress.step))

    def _prune(self, step: int) -> None:
        policies = {folder.name for folder in (self.inputs.output / "checkpoints").glob("step_*")}
        for folder in self.folder.glob("step_*"):
            if folder.name not in policies and folder.name != step_folder(self.folder, step).name:
                shutil.rmtree(folder)

    def at(self, progress: Progress, what: str) -> Path:
        """The checkpoint folder of that step.

        Raises:
            CorruptArtifactError: the folder is missing. The model, named by `what`, must not restart from scratch with
                a trained policy.
        """
        folder = step_folder(self.folder, progress.step)
        if not runtime.on_first_rank(folder.is_dir):
            raise CorruptArtifactError(
                f"{folder} is missing: {what} saved with the policy of step {progress.step}. Restore it, or "
                "start a new job from the policy's weights."
            )
        return folder
