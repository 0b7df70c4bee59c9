"""WARP's reference: the KL is measured against the moving average of the policy in training."""

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
    """theta_ema <- (1 - mu) theta_ema + mu theta after each step (Rame et al. 2024, WARP, equation 2), from the parent
    weights on. In fp32, whatever the policy's precision: a hundredth of a step is lost in less."""

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
            chunks: the reference, which becomes the average.
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
        """The policy has taken a step."""
        for chunk in self.policy:
            gather(chunk)
        for average, parameter in self.pairs:
            average.lerp_(parameter.to(average.dtype), self.rate)

    def save(self, progress: Progress) -> None:
        """Every rank calls it."""
        self.checkpoints.save(progress, self.chunks)

    def resume(self, progress: Progress) -> None:
        """
        Raises:
            CorruptArtifactError: what was saved with the policy is gone or torn.
        """
        checkpoint.load_weights(self.checkpoints.at(progress, "the average"), self.chunks)
