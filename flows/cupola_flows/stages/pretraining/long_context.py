"""A pretrained model that learns to read further."""

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
    """Next-token training of a checkpoint on longer sequences, step by step,
    with other positions (Qwen2's last phase)."""

    kind: Literal["long_context"] = "long_context"
    tokens: Annotated[str | None, Input("tokens")] = None
    """The stage that prepared the tokens."""
    parent: Annotated[str | None, Input("checkpoint")] = None
    """The stage whose checkpoint to go on from."""
    positions: PositionChange = Field(default_factory=PositionChange)
    """What the model's positions become."""
    mixture: Mixture | None = None
    """What bends the weights: temperature over languages, caps on epochs."""

    @model_validator(mode="after")
    def _phases_come(self) -> "LongContextStage":
        last = self.lengths().phases[-1].from_step
        if last >= self.steps:
            raise ValueError(
                f"a phase begins at step {last}, but there are {self.steps} steps. Raise steps, or begin it earlier"
            )
        return self

    def run(self, ctx: StageContext, taken: Taken) -> Artifact:
        """Go on with next-token training on longer sequences, step by step, with other positions."""
        tokens, parent = taken.one("tokens"), taken.one("parent")
        values = settings(self, NextTokenSettings) | {"weights": sampling_weights(self, tokens)}
        data = NextTokenData(tokens=tokens.path, lengths=self.lengths(), **values)
        return train(ctx, self, taken, data, parent=parent, positions=self.positions)

    def lengths(self) -> LengthSchedule:
        """The schedule that the stage's values describe."""
        phases = self.phases or (LengthPhase(sequence_length=self.batch.sequence_length),)
        return LengthSchedule(**settings(self, LengthSettings) | {"phases": phases})

    def shape(self, parent: ModelConfig | None) -> ModelConfig | None:
        return stretch(parent, self.positions, self.batch.sequence_length) if parent else None
