"""A pretrained model that learns to read further."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from cupola_flows.stages.base import TrainStage
from cupola_flows.stages.mixture import Mixture
from cupola_trainer.config import CopyingConfig, LengthPhase, LengthSchedule, PositionChange


class LongContextStage(TrainStage):
    """Next-token training of a checkpoint on longer sequences, step by step, with other positions (Qwen2's last phase)."""

    takes: ClassVar[dict[str, str]] = {"tokens": "tokens", "parent": "checkpoint"}

    kind: Literal["long_context"] = "long_context"
    tokens: str | None = None
    """The stage that prepared the tokens."""
    parent: str | None = None
    """The stage whose checkpoint to go on from."""
    positions: PositionChange = Field(default_factory=PositionChange)
    """What the model's positions become."""
    phases: tuple[LengthPhase, ...] = ()
    """Lengths of a full sequence, growing with the steps; each divides `batch.sequence_length`. Empty: that one throughout."""
    full_length_share: float = Field(default=0.4, gt=0, le=1)
    """Share of the sequences that have the phase's full length. The others are halves, quarters and so on, as many of each."""
    shortest: int = Field(default=256, ge=8)
    """No sequence is halved below this."""
    weights: dict[str, float] | None = None
    """Sampling weight per source; none for weights in proportion to tokens."""
    mixture: Mixture | None = None
    """What bends the weights: temperature over languages, caps on epochs."""
    reset_at_documents: bool = False
    """Each document sees only itself: attention ends, and positions begin, at its borders. Off: sequences run across."""
    copying: CopyingConfig | None = None
    """Random pieces that sequences say again, put over the text; none to leave the text as it is."""

    def lengths(self) -> LengthSchedule:
        """The schedule that the stage's values describe."""
        phases = self.phases or (LengthPhase(sequence_length=self.batch.sequence_length),)
        return LengthSchedule(phases=phases, full_length_share=self.full_length_share, shortest=self.shortest)

    @model_validator(mode="after")
    def _phases_come(self) -> "LongContextStage":
        last = self.lengths().phases[-1].from_step
        if last >= self.steps:
            raise ValueError(
                f"a phase begins at step {last}, but there are {self.steps} steps. Raise steps, or begin it earlier"
            )
        return self
