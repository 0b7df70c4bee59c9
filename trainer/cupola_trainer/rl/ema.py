"""The EMA reference of WARP: the KL is measured against a moving average of the policy."""

from collections.abc import Sequence

import torch

from cupola_trainer import checkpoint
from cupola_trainer.checkpoint import Progress
from cupola_trainer.checkpoint.saving import gather
from cupola_trainer.config import ModelConfig
from cupola_trainer.forward.schedule import Chunks
from cupola_trainer.objectives.inputs import ObjectiveInputs
from cupola_trainer.rl.companions import CompanionCheckpoints


class EmaReference:
    """theta_ema <- (1 - mu) theta_ema + mu theta after each step (Rame et al. 2024, WARP, equation 2), starting from
    the parent's weights. Always fp32: lower precision would lose a hundredth of a step."""

    def __init__(
        self,
        inputs: ObjectiveInputs,
        model: ModelConfig,
        chunks: Chunks,
        policy: Sequence[torch.nn.Module],
        rate: float,
    ) -> None:
        """
        Args:
            chunks: the reference, updated in place.
            policy: the model in training, in the same layout.
            rate: mu.
        """
        self.chunks, self.rate = chunks, rate
        self.checkpoints = CompanionCheckpoints(inputs, "ema", model)
        ours = [parameter for chunk in chunks for parameter in chunk.parameters()]
        theirs = [parameter for chunk in policy for parameter in chunk.parameters()]
        self.policy, self.pairs = policy, list(zip(ours, theirs, strict=True))

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def update(self) -> None:
        """Update the average after a step of the policy."""
        for chunk in self.policy:
            gather(chunk)
        for average, parameter in self.pairs:
            average.lerp_(parameter.to(average.dtype), self.rate)

    def save(self, progress: Progress) -> None:
        """Save the average. Called on every rank."""
        self.checkpoints.save(progress, self.chunks)

    def resume(self, progress: Progress) -> None:
        """Load the average saved with the policy.

        Raises:
            CorruptArtifactError: it is missing or corrupt.
        """
        checkpoint.load_weights(self.checkpoints.at(progress, "the EMA reference"), self.chunks)
