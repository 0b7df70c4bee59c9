"""Supervised fine-tuning."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from cupola_flows.execution.context import StageContext
from cupola_flows.stages.base import Input, Taken, settings
from cupola_flows.stages.training import TrainStage, train
from cupola_platform.artifacts import Artifact
from cupola_trainer.config import OptimizerConfig, SftData, SftSettings, check_replay

EPOCHS = 2.0
"""Default number of epochs, as for Qwen2."""


class SftStage(TrainStage, SftSettings):
    """Supervised fine-tuning on ChatML conversations, with the loss on assistant tokens only.

    If neither `steps` nor `epochs` is given, trains for two epochs, like Qwen2.
    """

    renders: ClassVar[bool] = True
    merges_online: ClassVar[bool] = True

    kind: Literal["sft"] = "sft"
    parent: Annotated[str | None, Input("checkpoint")] = None
    """Stage whose checkpoint to fine-tune."""
    conversations: Annotated[str | None, Input("conversations")] = None
    """Stage that made the conversations."""
    optimizer: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig(lr=7e-6))
    """The default learning rate is Qwen2's: 7e-6, decayed to 7e-7 over two epochs."""
    pretraining: Annotated[str | None, Input("tokens", guess=None)] = None
    """Stage whose training tokens are mixed in against forgetting; None for no mixing."""

    @model_validator(mode="after")
    def _replayed(self) -> "SftStage":
        check_replay(self.pretraining, self.pretraining_share)
        return self

    @model_validator(mode="after")
    def _one_length(self) -> "SftStage":
        if self.steps and self.epochs:
            raise ValueError(
                f"give either `steps` ({self.steps}) or `epochs` ({self.epochs:g}), not both (steps=0 to use epochs)"
            )
        return self

    def run(self, ctx: StageContext, taken: Taken) -> Artifact:
        """Fine-tune a checkpoint on conversations, and on pretraining text if it is mixed in."""
        pretraining = taken.maybe("pretraining")
        data = SftData(
            **settings(self, SftSettings) | {"epochs": None if self.steps else self.epochs or EPOCHS},
            conversations=taken.one("conversations").path,
            pretraining=pretraining.path if pretraining else None,
        )
        return train(ctx, self, taken, data, parent=taken.one("parent"))
