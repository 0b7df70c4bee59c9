"""Supervised fine-tuning."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from cupola_flows.execution.context import StageContext
from cupola_flows.stages.base import Input, Taken, settings
from cupola_flows.stages.training import TrainStage, train
from cupola_platform.artifacts import Artifact
from cupola_trainer.config import OptimizerConfig, SftData, SftSettings, check_replay

EPOCHS = 2.0
"""Where a recipe says nothing (Qwen2's)."""


class SftStage(TrainStage, SftSettings):
    """Supervised fine-tuning: ChatML, loss on assistant tokens only. Two epochs, as Qwen2,
    where neither `steps` nor `epochs` is given."""

    renders: ClassVar[bool] = True
    merges_online: ClassVar[bool] = True

    kind: Literal["sft"] = "sft"
    parent: Annotated[str | None, Input("checkpoint")] = None
    """The stage whose checkpoint to fine-tune."""
    conversations: Annotated[str | None, Input("conversations")] = None
    """The stage that made the conversations."""
    optimizer: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig(lr=7e-6))
    """Qwen2's rate: 7e-6 falling to 7e-7 over two epochs."""
    pretraining: Annotated[str | None, Input("tokens", guess=None)] = None
    """The stage whose tokens' training text is mixed in, so that the model does not unlearn it; none for no mixing."""

    @model_validator(mode="after")
    def _replayed(self) -> "SftStage":
        check_replay(self.pretraining, self.pretraining_share)
        return self

    @model_validator(mode="after")
    def _one_length(self) -> "SftStage":
        if self.steps and self.epochs:
            raise ValueError(
                f"give either `steps` ({self.steps}) or `epochs` ({self.epochs:g}), and not both (steps=0 for epochs)"
            )
        return self

    def run(self, ctx: StageContext, taken: Taken) -> Artifact:
        """Fine-tune a checkpoint on conversations: loss on the assistant's tokens,
        and on text where that is mixed in."""
        pretraining = taken.maybe("pretraining")
        data = SftData(
            **settings(self, SftSettings) | {"epochs": None if self.steps else self.epochs or EPOCHS},
            conversations=taken.one("conversations").path,
            pretraining=pretraining.path if pretraining else None,
        )
        return train(ctx, self, taken, data, parent=taken.one("parent"))
