"""Learning from a model's own answers: GRPO, PPO, online DPO."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from cupola_flows.stages.base import TrainStage
from cupola_trainer.config import CodeReward, OptimizerConfig, PythonReward, RolloutConfig, TaskReward, check_anchor

RewardRule = Annotated[TaskReward | CodeReward | PythonReward, Field(discriminator="type")]


class ReinforcementStage(TrainStage):
    """What every stage that learns from its own answers has in common."""

    takes: ClassVar[dict[str, str]] = {
        "parent": "checkpoint",
        "conversations": "conversations",
        "reward_model": "reward_model",
    }
    renders: ClassVar[bool] = True

    kind: str
    parent: str | None = None
    """The stage whose checkpoint to train; it is the frozen reference too."""
    conversations: str | None = None
    """The stage whose questions are asked."""
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    """How questions are asked, and how often their answers are learnt from."""
    rewards: tuple[RewardRule, ...] = (TaskReward(),)
    """What an answer is worth: the weighted sum of these, and of the reward model's word where there is one."""
    reward_model: str | None = None
    """The stage that trained a reward model; none for no such reward."""
    reward_model_weight: float = 1.0
    """Times its word, in the sum of all rewards."""

    @model_validator(mode="after")
    def _some_reward(self) -> "ReinforcementStage":
        if not self.rewards and not self.reward_model:
            raise ValueError("give rewards, or a reward_model: answers must be worth something")
        return self


class GrpoSettings(ReinforcementStage):
    """What every stage that learns by GRPO has in common."""

    kl_coef: float = Field(default=0.04, ge=0)
    """Weight of the KL to the reference in the loss; 0 keeps no reference in memory."""
    anchor_rate: float = Field(default=0.0, ge=0, lt=1)
    """How far the reference moves to the policy after each step (WARP's moving average, there 0.01); 0 leaves it frozen."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """How far below 1 the ratio to the policy that drew the answer may fall before it is clipped."""
    clip_high: float = Field(default=0.2, gt=0)
    """How far above."""
    normalization: Literal["answer", "token", "constant"] = "answer"
    """Mean over answers of their means over tokens (GRPO); over all tokens (DAPO); over max_new_tokens (Dr. GRPO)."""
    scale_rewards: bool = True
    """Divide a group's advantages by its standard deviation."""

    @model_validator(mode="after")
    def _anchor_pulls(self) -> "GrpoSettings":
        check_anchor(self.anchor_rate, self.kl_coef)
        return self


class GrpoStage(GrpoSettings):
    """Group relative policy optimization against the frozen parent, or the moving average of its own policy."""

    kind: Literal["grpo"] = "grpo"


class WarpStage(GrpoSettings):
    """WARP (Gemma 2's): rounds of several GRPO runs, merged by SLERP of what they learnt, then drawn back to where they began."""

    kind: Literal["warp"] = "warp"
    kl_coef: float = Field(default=0.1, ge=0)
    """Weight of the KL to the moving average."""
    anchor_rate: float = Field(default=0.01, ge=0, lt=1)
    """How far that average moves to the policy after each step."""
    runs: int = Field(default=2, ge=2)
    """Runs of a round, each with questions and answers of its own; `steps` are one run's."""
    rounds: int = Field(default=2, ge=1)
    """Each begins where the one before ended."""
    eta: float = Field(default=0.3, gt=0, le=1)
    """How far from a round's beginning to its merged runs it ends."""
    front: tuple[float, ...] = (0.1, 0.5, 0.8)
    """Other such distances that are measured in the last round, besides 0, `eta` and 1: points of the KL-reward front."""

    @model_validator(mode="after")
    def _can_be(self) -> "WarpStage":
        if self.lora:
            raise ValueError("lora: WARP merges whole checkpoints. Leave it out, or use a grpo stage")
        if self.checkpoint.upload:
            raise ValueError("checkpoint.upload: a stage of several jobs cannot be taken up elsewhere. Leave it out")
        if any(not 0 < share < 1 for share in self.front):
            raise ValueError(
                f"front={list(self.front)}: distances lie between 0 (the beginning) and 1 (the merged runs)"
            )
        return self


class PpoStage(ReinforcementStage):
    """Proximal policy optimization with a value model, against the frozen parent. Defaults are Qwen's."""

    takes: ClassVar[dict[str, str]] = {
        **ReinforcementStage.takes,
        "value_model": "reward_model",
        "pretraining": "tokens",
    }

    kind: Literal["ppo"] = "ppo"
    rollout: RolloutConfig = Field(default_factory=lambda: RolloutConfig(queries=32, group_size=2, top_p=0.9))
    """How questions are asked, and how often their answers are learnt from."""
    kl_coef: float = Field(default=0.04, ge=0)
    """Weight of the KL to the reference in the reward, at each token; the first one, where it adapts."""
    kl_target: float | None = Field(default=None, gt=0)
    """KL an answer, in nats, that the weight adapts to; none to keep it fixed."""
    kl_horizon: float = Field(default=10_000, gt=0)
    """Answers over which an adapting weight moves by the error."""
    clip: float = Field(default=0.2, gt=0, lt=1)
    """How far from 1 the ratio to the policy that drew the answer may go before it is clipped."""
    value_clip: float = Field(default=0.15, gt=0)
    """How far a value may go from what it was when the answer was drawn."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount a token."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """Of generalized advantage estimation."""
    value_model: str | None = None
    """The stage whose model with a scalar head the value model starts from, such as the reward model; none for the parent's
    weights and a head of zeros."""
    value_optimizer: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig(lr=5e-6))
    value_warmup_steps: int = Field(default=50, ge=0)
    """First steps, in which the value model learns and the policy stays."""
    pretraining: str | None = None
    """The stage whose tokens' next-token loss is mixed in; none for no mixing."""
    pretraining_coef: float = Field(default=1.0, gt=0)
    """Weight of that loss."""


class OnlineDpoStage(ReinforcementStage):
    """DPO on pairs of the policy's own latest answers: the best and the worst of each group."""

    kind: Literal["online_dpo"] = "online_dpo"
    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull to the reference."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Probability that a label is wrong (conservative DPO)."""
    loss_type: Literal["sigmoid", "ipo"] = "sigmoid"
    """DPO's own loss, or IPO's squared one."""
