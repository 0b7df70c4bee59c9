"""PPO's value model: a separate model with a scalar head and its own optimizer and checkpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from cupola_trainer import checkpoint, models, optim, runtime
from cupola_trainer.checkpoint import Progress
from cupola_trainer.checkpoint.compatibility import check_architecture
from cupola_trainer.config import ModelConfig
from cupola_trainer.config.rl import PpoData
from cupola_trainer.data.batches import Batch
from cupola_trainer.forward import outputs
from cupola_trainer.forward.schedule import Reads
from cupola_trainer.objectives import passes
from cupola_trainer.objectives.base import Objective
from cupola_trainer.objectives.inputs import ObjectiveInputs
from cupola_trainer.objectives.losses.actor_critic import clipped_value_loss
from cupola_trainer.rl.companions import CompanionCheckpoints
from cupola_trainer.rl.inference import over_rows
from cupola_trainer.rl.rollouts import Rollout


class ValueObjective(Objective):
    """The clipped squared error of values, on the policy's batches."""

    name = "value"
    reads: ClassVar[Reads] = "values"

    def __init__(self, clip: float) -> None:
        self.clip = clip

    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        raise NotImplementedError("a value model reads the policy's batches")

    def heldout(self, index: int) -> Mapping[str, np.ndarray] | None:
        return None

    def collate(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
        raise NotImplementedError("a value model reads the policy's batches")

    def count(self, batch: Batch) -> Tensor:
        return batch["row_starts"].sum()

    def loss(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum over responses, their number, and the sum over responses of the clipped fraction."""
        losses, clipped = clipped_value_loss(output, batch["old_values"], batch["returns"], clip=self.clip)
        sums = {"clip_fraction": (clipped * batch["shares"]).sum().float()}
        return (losses * batch["weights"]).sum(), self.count(batch), sums


class ValueModel:
    """The value model in training."""

    def __init__(self, inputs: ObjectiveInputs, data: PpoData, policy: ModelConfig) -> None:
        """Start from `data.value_model`, or from the policy's initial weights with a zero-initialized head.

        Raises:
            ConfigError: `data.value_model` has another architecture.
        """
        assert inputs.parent
        self.micro_batch_size, self.objective = inputs.batch.micro_batch_size, ValueObjective(data.value_clip)
        self.model = replace(policy, head="scalar")
        self.checkpoints = CompanionCheckpoints(inputs, self.objective.name, self.model)
        chunks = models.build(self.model, inputs.layout, seed=inputs.seed, dtype=runtime.dtype(inputs.precision))
        parent = data.value_model or inputs.parent
        if data.value_model:
            check_architecture(parent, self.model, checkpoint.read_model(parent))
        checkpoint.load_weights(parent, chunks)
        if not data.value_model:
            for chunk in chunks:
                if chunk.post_process:
                    torch.nn.init.zeros_(chunk.output_layer.weight)
        self.trainee = optim.build(chunks, inputs.layout, data.value_optimizer, inputs.steps)

    def values(self, rollout: Rollout) -> np.ndarray:
        """The value before each response token [rows, s]; 0 elsewhere."""
        values = over_rows(rollout, self.micro_batch_size, lambda batch: outputs.values(self.trainee.chunks, batch))
        return np.where(rollout.mask, values, 0.0).astype(np.float32)

    def train(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Take one step on the policy's micro-batches. Returns metrics to report."""
        means = passes.train(self.trainee.chunks, self.objective, batches)
        self.trainee.scheduler.step(increment=1)
        norm, moved = self.trainee.update()
        metrics = {f"value_{name}": mean for name, mean in means.items()} | {"value_grad_norm": norm}
        return metrics if moved else metrics | {"value_skipped": 1.0}

    def save(self, progress: Progress, tokenizer: Path | None) -> None:
        """Save weights and optimizer, before the policy's checkpoint of the same step."""
        trainee = self.trainee
        self.checkpoints.save(progress, trainee.chunks, tokenizer, trainee.optimizer, trainee.scheduler)

    def resume(self, progress: Progress) -> None:
        """Restore weights and optimizer at `progress`.

        Raises:
            CorruptArtifactError: the checkpoint saved with the policy is missing or corrupt.
        """
        folder = self.checkpoints.at(progress, "the value model")
        checkpoint.load_training(folder, self.trainee.chunks, self.trainee.optimizer, self.trainee.scheduler)
