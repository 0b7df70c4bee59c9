"""What a training job learns from its own responses: where prompts come from, how responses are drawn,
what they are worth."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from cupola_platform.errors import ConfigError
from cupola_platform.strict import STRICT, Strict
from cupola_trainer.config.training import BatchConfig, OptimizerConfig


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TaskReward:
    """The scorer of the prompt's own task (reasoning-gym): 1 for a right response, less otherwise."""

    scorer: Literal["task"] = "task"
    weight: float = 1.0
    """Weight of the score in the total reward."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExecutionReward:
    """The share of a row's unit tests that the response's Python passes. Each one runs in a process without network,
    files of its own or time to spare. Rows carry {"tests": [Python statements]}."""

    scorer: Literal["execution"] = "execution"
    weight: float = 1.0
    """Weight of the score in the total reward."""
    timeout_seconds: float = Field(default=5.0, gt=0)
    """Of processor time and of wall, for each response's tests together."""
    memory_bytes: int = Field(default=512 * 2**20, ge=2**26)
    """Address space of the process."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RewardModelReward:
    """What a reward model says of prompt and response."""

    scorer: Literal["reward_model"] = "reward_model"
    weight: float = 1.0
    """Weight of the score in the total reward."""
    checkpoint: Path
    """Folder of a checkpoint with a scalar head, and with the policy's tokenizer."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PythonReward:
    """Any Python function of a row of the prompts and a response's text: `function(row, response) -> float`."""

    scorer: Literal["python"] = "python"
    weight: float = 1.0
    """Weight of the score in the total reward."""
    function: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """`package.module:function`, importable by the job's processes."""


Reward = Annotated[TaskReward | ExecutionReward | RewardModelReward | PythonReward, Field(discriminator="scorer")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RolloutConfig:
    """How prompts are sampled, and how often a rollout is trained on."""

    prompts: int = Field(default=16, ge=1)
    """Prompts per rollout. Times samples_per_prompt, it is a multiple of global_batch_size (alone, for online_dpo)."""

    samples_per_prompt: int = Field(default=8, ge=1)
    """Responses to each prompt."""

    epochs: int = Field(default=1, ge=1)
    """Passes over each rollout."""

    temperature: float = Field(default=1.0, gt=0)

    top_p: float = Field(default=1.0, gt=0, le=1)

    top_k: int = Field(default=0, ge=0)
    """Likeliest tokens to draw from; 0 for all."""

    max_new_tokens: int = Field(default=32, ge=1)

    batch_size: int = Field(default=256, ge=1)
    """Responses that one rank draws together."""

    engine: Literal["megatron", "vllm"] = "megatron"
    """What draws them: the model in training itself, or vLLM with a copy of its weights on every GPU."""

    engine_memory: float = Field(default=0.3, gt=0, lt=1)
    """Share of a GPU's memory that vLLM takes while it draws."""

    order: Literal["shuffled", "reward_variance"] = "shuffled"
    """Prompts in a new order each time through; or those first whose responses differ most in reward, as Qwen2.5's
    GRPO: every prompt is then sampled once before the first step."""

    truncated: Literal["keep", "mask"] = "keep"
    """Responses cut off at max_new_tokens: scored as they are, or left out of the loss too."""

    heldout_prompts: int = Field(default=64, ge=0)
    """Held-out prompts, from all over their file, whose greedy responses are scored whenever a job evaluates."""

    def check(self, batch: BatchConfig, *, pairs: bool) -> None:
        """Refuse sizes that do not fit each other.

        Args:
            pairs: whether a sample is a pair of a prompt's responses, and not one response.

        Raises:
            ConfigError: the value given, the rule, the next move.
        """
        if self.samples_per_prompt < 2:
            raise ConfigError(
                f"rollout.samples_per_prompt={self.samples_per_prompt}: a response is judged against others to the "
                "same prompt. Give at least 2."
            )
        samples, what = (self.prompts, "pairs") if pairs else (self.prompts * self.samples_per_prompt, "responses")
        if samples % batch.global_batch_size:
            raise ConfigError(
                f"a rollout has {samples} {what}, no multiple of global_batch_size={batch.global_batch_size}. "
                f"Try global_batch_size={samples}, or change rollout.prompts={self.prompts}."
            )
        if batch.sequence_length <= self.max_new_tokens:
            raise ConfigError(
                f"rollout.max_new_tokens={self.max_new_tokens} leaves no room for a prompt in "
                f"sequence_length={batch.sequence_length}. Give longer sequences."
            )


class ReinforcementSettings(Strict):
    """What every way to learn from one's own responses has in common."""

    pairs: ClassVar[bool] = False
    """Whether a sample is a pair of responses to one prompt, and not one response."""

    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    """How prompts are sampled, and how often a rollout is trained on."""


class ReinforcementData(ReinforcementSettings):
    """The same with what a job reads."""

    conversations: Path
    """A `conversations` artifact's folder: its rows, without their last response, are the prompts."""

    rewards: tuple[Reward, ...] = Field(default=(TaskReward(),), min_length=1)
    """What a response is worth: the weighted sum of these."""


class GrpoSettings(ReinforcementSettings):
    """What every objective that compares the responses to one prompt has in common."""

    kl_coef: float = Field(default=0.04, ge=0)
    """Weight of the KL to the reference in the loss; 0 keeps no reference in memory."""

    ema_rate: float = Field(default=0.0, ge=0, lt=1)
    """How far the reference moves to the policy after each step (WARP's moving average, there 0.01);
    0 leaves it frozen."""

    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """How far below 1 the ratio to the policy that drew the response may fall before it is clipped."""

    clip_high: float = Field(default=0.2, gt=0)
    """How far above."""

    normalization: Literal["response", "token", "constant"] = "response"
    """Mean over responses of their means over tokens (GRPO); over all tokens (DAPO); over max_new_tokens (Dr. GRPO)."""

    scale_rewards: bool = True
    """Divide a group's advantages by its standard deviation."""

    @model_validator(mode="after")
    def _ema_pulls(self) -> "GrpoSettings":
        if self.ema_rate and not self.kl_coef:
            raise ValueError(
                f"ema_rate={self.ema_rate} with kl_coef=0: nothing pulls to the reference that moves. Give "
                "kl_coef (WARP's is 0.1), or leave ema_rate out"
            )
        return self


class GrpoData(GrpoSettings, ReinforcementData):
    """Group relative policy optimization, against the frozen initial model."""

    objective: Literal["grpo"] = "grpo"


class PpoSettings(ReinforcementSettings):
    """PPO's two losses, its advantages and its pull to the reference. Defaults are Qwen's."""

    rollout: RolloutConfig = Field(default_factory=lambda: RolloutConfig(prompts=32, samples_per_prompt=2, top_p=0.9))
    """How prompts are sampled, and how often a rollout is trained on."""

    kl_coef: float = Field(default=0.04, ge=0)
    """Weight of the KL to the reference in the reward, at each token; the first one, where it adapts."""

    kl_target: float | None = Field(default=None, gt=0)
    """KL a response, in nats, that the weight adapts to; none to keep it fixed."""

    kl_horizon: float = Field(default=10_000, gt=0)
    """Responses over which an adapting weight moves by the error."""

    clip: float = Field(default=0.2, gt=0, lt=1)
    """How far from 1 the ratio to the policy that drew the response may go before it is clipped."""

    value_clip: float = Field(default=0.15, gt=0)
    """How far a value may go from what it was when the response was drawn."""

    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount a token."""

    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """Of generalized advantage estimation."""

    value_optimizer: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig(lr=5e-6))

    value_warmup_steps: int = Field(default=50, ge=0)
    """First steps, in which the value model learns and the policy stays."""

    pretraining_coef: float = Field(default=1.0, gt=0)
    """Weight of the next-token loss of pretraining text, where some is mixed in."""


class PpoData(PpoSettings, ReinforcementData):
    """Proximal policy optimization with a value model, against the frozen initial model."""

    objective: Literal["ppo"] = "ppo"

    value_model: Path | None = None
    """Checkpoint with a scalar head to start the value model from, such as the reward model; none for the policy's
    weights and a head of zeros."""

    pretraining: Path | None = None
    """A `tokens` artifact's folder whose next-token loss is mixed in, one sequence for each response;
    none for no mixing."""


class PairLossSettings(Strict):
    """The loss of DPO on a pair, wherever the pair comes from."""

    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull to the reference."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Probability that a label is wrong (conservative DPO)."""

    loss_type: Literal["sigmoid", "ipo"] = "sigmoid"
    """DPO's own loss, or IPO's squared one, which does not run off on pairs that are already told apart."""


class OnlineDpoSettings(PairLossSettings, ReinforcementSettings):
    """DPO on pairs of the policy's own latest responses."""


class OnlineDpoData(OnlineDpoSettings, ReinforcementData):
    """Direct preference optimization on pairs of the policy's own latest responses:
    the best and the worst of each group."""

    pairs: ClassVar[bool] = True

    objective: Literal["online_dpo"] = "online_dpo"
