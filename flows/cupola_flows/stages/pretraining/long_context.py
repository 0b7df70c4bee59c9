"""Long-context training."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cupola_flows.execution.context import StageContext
from cupola_flows.stages.base import Input, Taken, settings
from cupola_flows.stages.pretraining.mixture import Mixture, sampling_weights
from cupola_flows.stages.training import TrainStage, train
from cupola_platform.artifacts import Artifact
from cupola_trainer.config import (
    LengthPhase,
    LengthSchedule,
    LengthSettings,
    ModelConfig,
    NextTokenData,
    NextTokenSettings,
    PositionChange,
)
from cupola_trainer.config.model.long_context import stretch


class LongContextStage(TrainStage, NextTokenSettings, LengthSettings):
    """Continue next-token training on longer sequences in phases, with changed positions, as in Qwen2's last phase."""

    kind: Literal["long_context"] = "long_context"
    tokens: Annotated[str | None, Input("tokens")] = None
    """Stage that prepared the tokens."""
    parent: Annotated[str | None, Input("checkpoint")] = None
    """Stage whose checkpoint to continue."""
    positions: PositionChange = Field(default_factory=PositionChange)
    """Changes to the model's positions."""
    mixture: Mixture | None = None
    """Adjusts the weights: temperature over languages, caps on epochs."""

    @model_validator(mode="after")
    def _phases_come(self) -> "LongContextStage":
        last = self.lengths().phases[-1].from_step
        if last >= self.steps:
            raise ValueError(
                f"a phase starts at step {last}, but there are {self.steps} steps. Raise steps, or start it earlier"
            )
        return self

    def run(self, ctx: StageContext, taken: Taken) -> Artifact:
        """Continue next-token training on longer sequences."""
        tokens, parent = taken.one("tokens"), taken.one("parent")
        values = settings(self, NextTokenSettings) | {"weights": sampling_weights(self, tokens)}
        data = NextTokenData(tokens=tokens.path, lengths=self.lengths(), **values)
        return train(ctx, self, taken, data, parent=parent, positions=self.positions)

    def lengths(self) -> LengthSchedule:
        """The schedule of sequence lengths in the stage's settings."""
        phases = self.phases or (LengthPhase(sequence_length=self.batch.sequence_length),)
        return LengthSchedule(**settings(self, LengthSettings) | {"phases": phases})

    def shape(self, parent: ModelConfig | None) -> ModelConfig | None:
        return stretch(parent, self.positions, self.batch.sequence_length) if parent else None
