"""Training on the model's own responses: prompts, sampling, losses."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from cupola_platform.errors import ConfigError
from cupola_platform.strict import STRICT, Strict
from cupola_trainer.config.scorers import Reward, TaskReward
from cupola_trainer.config.training import BatchConfig, OptimizerConfig


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RolloutConfig:
    """How prompts are sampled, and how often a rollout is trained on."""

    prompts: int = Field(default=16, ge=1)
    """Prompts per rollout. prompts x samples_per_prompt (online_dpo: prompts) must be a multiple of
    global_batch_size."""

    samples_per_prompt: int = Field(default=8, ge=1)
    """Responses per prompt."""

    epochs: int = Field(default=1, ge=1)
    """Passes over each rollout."""

    temperature: float = Field(default=1.0, gt=0)

    top_p: float = Field(default=1.0, gt=0, le=1)

    top_k: int = Field(default=0, ge=0)
    """Sample from this many likeliest tokens; 0 for all."""

    max_new_tokens: int = Field(default=32, ge=1)

    batch_size: int = Field(default=256, ge=1)
    """Responses that one rank samples together."""

    engine: Literal["megatron", "vllm"] = "megatron"
    """What samples responses: the model being trained, or vLLM with a copy of its weights on every GPU."""

    engine_memory: float = Field(default=0.3, gt=0, lt=1)
    """Share of a GPU's memory that vLLM uses while sampling."""

    order: Literal["shuffled", "reward_variance"] = "shuffled"
    """`shuffled`: reshuffle the prompts each epoch. `reward_variance`: prompts whose rewards vary most first, as in
    Qwen2.5's GRPO; every prompt is sampled once before the first step."""

    truncated: Literal["keep", "mask"] = "keep"
    """Responses truncated at max_new_tokens: score them as they are, or mask them out of the loss too."""

    length_buffer: int = Field(default=0, ge=0)
    """Responses within this many tokens of max_new_tokens lose up to 1 of their reward (DAPO's soft overlong
    punishment); 0 for none."""

    correction: Literal["none", "truncate", "mask"] = "none"
    """Weigh each token's loss by its probability in training over that in sampling: `truncate` it at `correction_cap`
    (truncated importance sampling), or `mask` tokens above it out."""

    correction_cap: float = Field(default=2.0, gt=0)
    """The largest weight of `correction`."""

    max_gap: float | None = Field(default=None, gt=0)
    """End the run when log-probabilities in sampling and in training differ by more, in nats a token on average over a
    step; None to go on in any case."""

    max_draws: int = Field(default=1, ge=1, le=100)
    """Sample further prompts in place of those whose responses all have the same reward, which teach nothing, until
    there are none or prompts were drawn this often (DAPO's dynamic sampling). 1: keep all."""

    heldout_prompts: int = Field(default=64, ge=0)
    """Held-out prompts, spread over their file, whose greedy responses are scored at each evaluation."""

    def check(self, batch: BatchConfig, *, pairs: bool) -> None:
        """Check that the sizes fit each other.

        Args:
            pairs: whether a sample is a pair of responses to one prompt rather than a single response.

        Raises:
            ConfigError: they do not.
        """
        if self.samples_per_prompt < 2:
            raise ConfigError(
                f"rollout.samples_per_prompt={self.samples_per_prompt}: responses are compared with others to "
                "the same prompt. Give at least 2."
            )
        samples, what = (self.prompts, "pairs") if pairs else (self.prompts * self.samples_per_prompt, "responses")
        if samples % batch.global_batch_size:
            raise ConfigError(
                f"a rollout has {samples} {what}, not a multiple of global_batch_size={batch.global_batch_size}. "
                f"Try global_batch_size={samples}, or change rollout.prompts={self.prompts}."
            )
        if self.length_buffer > self.max_new_tokens:
            raise ConfigError(
                f"rollout.length_buffer={self.length_buffer} is more than max_new_tokens={self.max_new_tokens}: every "
                "response would lose reward. Use a smaller one."
            )
        if pairs and (self.correction != "none" or self.max_gap is not None):
            raise ConfigError(
                "rollout.correction and rollout.max_gap are for policy gradients; the loss of pairs has no ratio to "
                "sampling. Leave them out."
            )
        if batch.sequence_length <= self.max_new_tokens:
            raise ConfigError(
                f"rollout.max_new_tokens={self.max_new_tokens} leaves no room for a prompt in "
                f"sequence_length={batch.sequence_length}. Give longer sequences."
            )


class ReinforcementSettings(Strict):
    """Settings shared by all objectives that train on the model's own responses."""

    pairs: ClassVar[bool] = False
    """Whether a sample is a pair of responses to one prompt rather than a single response."""

    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    """How prompts are sampled, and how often a rollout is trained on."""


class ReinforcementData(ReinforcementSettings):
    """The settings plus a job's inputs."""

    conversations: Path
    """Folder of a `conversations` artifact; its rows without their last response are the prompts."""

    rewards: tuple[Reward, ...] = Field(default=(TaskReward(),), min_length=1)
    """A response's reward is the weighted sum of these."""


class GrpoSettings(ReinforcementSettings):
    """Settings shared by all objectives that compare responses to one prompt."""

    kl_coef: float = Field(default=0.04, ge=0)
    """Weight of the KL to the reference in the loss; 0 loads no reference."""

    ema_rate: float = Field(default=0.0, ge=0, lt=1)
    """Rate at which the reference moves toward the policy after each step (WARP's EMA reference uses 0.01); 0 keeps it
    frozen."""

    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """How far below 1 the ratio to the sampling policy may fall before it is clipped."""

    clip_high: float = Field(default=0.2, gt=0)
    """How far above 1 it may rise."""

    ratio: Literal["token", "sequence"] = "token"
    """What is clipped: each token's ratio, or one of each response, the geometric mean of its tokens' (GSPO)."""

    clipping: Literal["loss", "weight"] = "loss"
    """`loss`: a clipped token has no gradient (PPO, GRPO). `weight`: the ratio, at most 1 + clip_high, weighs the
    gradient of every token (CISPO)."""

    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """How the KL is estimated in the loss: log ratio, half its square, or GRPO's. k1 has a gradient of mean zero."""

    baseline: Literal["mean", "leave_one_out"] = "mean"
    """What a reward is compared with: its group's mean, or the mean of the group's others (RLOO)."""

    normalization: Literal["response", "token", "constant"] = "response"
    """`response`: mean over tokens, then responses (GRPO). `token`: mean over all tokens (DAPO). `constant`: divide by
    max_new_tokens (Dr. GRPO)."""

    scale_rewards: Literal["group", "rollout", "none"] = "group"
    """Divide advantages by the standard deviation of the group's rewards (GRPO) or of the rollout's (REINFORCE++), or
    leave them (Dr. GRPO, RLOO)."""

    @model_validator(mode="after")
    def _one_way_to_clip(self) -> "GrpoSettings":
        if self.ratio == "sequence" and self.clipping == "weight":
            raise ValueError("ratio=sequence with clipping=weight: CISPO weighs tokens. Use ratio: token")
        return self

    @model_validator(mode="after")
    def _ema_needs_kl(self) -> "GrpoSettings":
        if self.ema_rate and not self.kl_coef:
            raise ValueError(
                f"ema_rate={self.ema_rate} with kl_coef=0: without a KL term the moving reference is unused. Set "
                "kl_coef (WARP uses 0.1), or leave ema_rate out"
            )
        return self


class GrpoData(GrpoSettings, ReinforcementData):
    """Group relative policy optimization, against the frozen initial model."""

    objective: Literal["grpo"] = "grpo"


class PpoSettings(ReinforcementSettings):
    """PPO's two losses, advantages and KL penalty. Defaults are Qwen's."""

    rollout: RolloutConfig = Field(default_factory=lambda: RolloutConfig(prompts=32, samples_per_prompt=2, top_p=0.9))
    """How prompts are sampled, and how often a rollout is trained on."""

    kl_coef: float = Field(default=0.04, ge=0)
    """Weight of the per-token KL to the reference in the reward; the initial one if it adapts."""

    kl_target: float | None = Field(default=None, gt=0)
    """Target KL per response, in nats, that the weight adapts to; None keeps the weight fixed."""

    kl_horizon: float = Field(default=10_000, gt=0)
    """Responses over which an adaptive weight changes by the relative error."""

    clip: float = Field(default=0.2, gt=0, lt=1)
    """How far from 1 the ratio to the sampling policy may move before it is clipped."""

    value_clip: float = Field(default=0.15, gt=0)
    """How far a value may move from its value at sampling time before it is clipped."""

    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount per token."""

    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """Lambda of generalized advantage estimation."""

    value_optimizer: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig(lr=5e-6))

    value_warmup_steps: int = Field(default=50, ge=0)
    """Initial steps that train only the value model."""

    pretraining_coef: float = Field(default=1.0, gt=0)
    """Weight of the next-token loss on pretraining text, if any is mixed in."""

    @model_validator(mode="after")
    def _draws_once(self) -> "PpoSettings":
        if self.rollout.max_draws > 1:
            raise ValueError(
                f"rollout.max_draws={self.rollout.max_draws}: PPO learns from responses that all have the same reward, "
                "too. Leave it out"
            )
        return self


class PpoData(PpoSettings, ReinforcementData):
    """Proximal policy optimization with a value model, against the frozen initial model."""

    objective: Literal["ppo"] = "ppo"

    value_model: Path | None = None
    """Checkpoint with a scalar head to start the value model from, such as the reward model; None for the policy's
    weights with a zero head."""

    pretraining: Path | None = None
    """Folder of a `tokens` artifact to mix in, one sequence per response; None for no mixing."""


SMOOTHED = ("sigmoid", "cpo", "simpo")
"""Losses on pairs that allow for wrong labels."""


class PairLossSettings(Strict):
    """DPO's loss on a pair, wherever the pair comes from."""

    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull to the reference."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Probability that a label is wrong (conservative DPO)."""

    loss_type: Literal["sigmoid", "ipo", "apo_zero", "apo_down"] = "sigmoid"
    """DPO's own loss; IPO's squared one, which does not diverge on pairs that are already separated; or APO's, which
    fixes whether chosen responses become likelier (`apo_zero`) or not (`apo_down`)."""

    @model_validator(mode="after")
    def _smoothing_is_used(self) -> "PairLossSettings":
        if self.label_smoothing and self.loss_type not in SMOOTHED:
            raise ValueError(
                f"label_smoothing={self.label_smoothing} with loss_type={self.loss_type}: only {', '.join(SMOOTHED)} "
                "have it. Leave it out"
            )
        return self


class OnlineDpoSettings(PairLossSettings, ReinforcementSettings):
    """DPO on pairs sampled from the current policy."""


class OnlineDpoData(OnlineDpoSettings, ReinforcementData):
    """Direct preference optimization on pairs sampled from the current policy: the best and worst of each group."""

    pairs: ClassVar[bool] = True

    objective: Literal["online_dpo"] = "online_dpo"
