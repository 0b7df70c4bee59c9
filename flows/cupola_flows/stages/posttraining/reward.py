"""Reward model training."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from cupola_flows.execution.context import StageContext
from cupola_flows.stages.base import Input, Taken, settings
from cupola_flows.stages.training import TrainStage, train
from cupola_platform.artifacts import Artifact
from cupola_platform.errors import ConfigError
from cupola_trainer.config import OptimizerConfig, RewardData, RewardSettings


class RewardStage(TrainStage, RewardSettings):
    """Train a reward model on preference pairs, from a language model or from another reward model."""

    gives: ClassVar[str] = "reward_model"
    renders: ClassVar[bool] = True

    kind: Literal["reward"] = "reward"
    parent: Annotated[str | None, Input("checkpoint", optional=True)] = None
    """Stage whose language model gets a scalar head."""
    reward: Annotated[str | None, Input("reward_model", guess=None)] = None
    """Stage whose reward model to start from instead of `parent`, to fine-tune after preference-model pretraining."""
    preferences: Annotated[str | None, Input("preferences")] = None
    """Stage that made the pairs."""
    optimizer: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig(lr=3e-6))
    """The default learning rate is Qwen's."""

    @model_validator(mode="after")
    def _one_beginning(self) -> "RewardStage":
        if self.parent and self.reward:
            raise ValueError("give either `parent` (a language model) or `reward` (a reward model), not both")
        return self

    def run(self, ctx: StageContext, taken: Taken) -> Artifact:
        """Train a reward model on pairs, from a language model or from another reward model."""
        parent = taken.maybe("reward") or taken.maybe("parent")
        if parent is None:
            raise ConfigError(f"stage {ctx.name} has no model to start from. Name `parent` or `reward`.")
        preferences = taken.one("preferences")
        data = RewardData(**settings(self, RewardSettings), preferences=preferences.path)
        return train(ctx, self, taken, data, parent=parent, parents=[parent, preferences])
