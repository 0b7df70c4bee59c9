"""The base of every stage that trains on its own responses."""

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from cupola_flows.stages.base import Input, Stages, Taken, settings
from cupola_flows.stages.training import TrainStage
from cupola_trainer.config import (
    ExecutionReward,
    HttpReward,
    PatternReward,
    PythonReward,
    ReinforcementSettings,
    Reward,
    RewardModelReward,
    TaskReward,
)

RewardRule = Annotated[
    TaskReward | ExecutionReward | PythonReward | HttpReward | PatternReward, Field(discriminator="scorer")
]


class OwnResponsesStage(TrainStage, ReinforcementSettings):
    """Base of every stage that trains on its own responses."""

    renders: ClassVar[bool] = True
    learns_pairs: ClassVar[bool] = False
    """Whether a sample is a pair of responses instead of one."""

    parent: Annotated[str | None, Input("checkpoint")] = None
    """Stage whose checkpoint to train; also the frozen reference."""
    conversations: Annotated[str | None, Input("conversations")] = None
    """Stage whose prompts to use."""
    rewards: tuple[RewardRule, ...] = (TaskReward(),)
    """Rewards of a response. The total is their weighted sum, with the reward model's score if there is one."""
    reward_model: Annotated[str | None, Input("reward_model", guess=None)] = None
    """Stage that trained the reward model; None for no reward model."""
    reward_model_weight: float = 1.0
    """Weight of the reward model's score in the total reward."""

    @model_validator(mode="after")
    def _some_reward(self) -> "OwnResponsesStage":
        if not self.rewards and not self.reward_model:
            raise ValueError("no rewards given. Give `rewards` or a `reward_model`")
        return self

    def check(self, recipe: Stages) -> None:
        super().check(recipe)
        self.rollout.check(self.batch, pairs=self.learns_pairs)

    def reads(self, taken: Taken, of: type[ReinforcementSettings]) -> dict[str, Any]:
        """Fields of the job's data: the settings in `of`, the prompts and the rewards."""
        rewards: tuple[Reward, ...] = self.rewards
        if model := taken.maybe("reward_model"):
            rewards = (*rewards, RewardModelReward(checkpoint=model.path, weight=self.reward_model_weight))
        return settings(self, of) | {"conversations": taken.one("conversations").path, "rewards": rewards}
