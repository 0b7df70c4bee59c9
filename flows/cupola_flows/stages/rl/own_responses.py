"""What every stage that learns from its own responses has in common."""

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from cupola_flows.stages.base import Input, Stages, Taken, settings
from cupola_flows.stages.training import TrainStage
from cupola_trainer.config import (
    ExecutionReward,
    PythonReward,
    ReinforcementSettings,
    Reward,
    RewardModelReward,
    TaskReward,
)

RewardRule = Annotated[TaskReward | ExecutionReward | PythonReward, Field(discriminator="scorer")]


class OwnResponsesStage(TrainStage, ReinforcementSettings):
    """What every stage that learns from its own responses has in common."""

    renders: ClassVar[bool] = True
    learns_pairs: ClassVar[bool] = False
    """Whether a sample is a pair of responses, and not one."""

    parent: Annotated[str | None, Input("checkpoint")] = None
    """The stage whose checkpoint to train; it is the frozen reference too."""
    conversations: Annotated[str | None, Input("conversations")] = None
    """The stage whose prompts are used."""
    rewards: tuple[RewardRule, ...] = (TaskReward(),)
    """What a response is worth: the weighted sum of these, and of the reward model's score where there is one."""
    reward_model: Annotated[str | None, Input("reward_model", guess=None)] = None
    """The stage that trained a reward model; none for no such reward."""
    reward_model_weight: float = 1.0
    """Weight of the reward model's score in that sum."""

    @model_validator(mode="after")
    def _some_reward(self) -> "OwnResponsesStage":
        if not self.rewards and not self.reward_model:
            raise ValueError("give rewards, or a reward_model: responses must be worth something")
        return self

    def check(self, recipe: Stages) -> None:
        super().check(recipe)
        self.rollout.check(self.batch, pairs=self.learns_pairs)

    def reads(self, taken: Taken, of: type[ReinforcementSettings]) -> dict[str, Any]:
        """What a job of the stage reads: its settings `of` that objective, the prompts, the rewards."""
        rewards: tuple[Reward, ...] = self.rewards
        if model := taken.maybe("reward_model"):
            rewards = (*rewards, RewardModelReward(checkpoint=model.path, weight=self.reward_model_weight))
        return settings(self, of) | {"conversations": taken.one("conversations").path, "rewards": rewards}
