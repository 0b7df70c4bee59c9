"""Learning from a model's own answers: each stage as a training job."""

from typing import Any

from cupola_flows.context import StageContext
from cupola_flows.stages import GrpoStage, OnlineDpoStage, PpoStage
from cupola_flows.stages.reinforcing import GrpoSettings, ReinforcementStage
from cupola_flows.training import train
from cupola_platform.artifacts import Artifact
from cupola_trainer.config import GrpoData, ModelReward, OnlineDpoData, PpoData, Reward


def grpo(
    ctx: StageContext, stage: GrpoStage, parent: Artifact, conversations: Artifact, reward_model: Artifact | None
) -> Artifact:
    """Group relative policy optimization."""
    data = grpo_data(stage, conversations, reward_model)
    return train(ctx, stage, data=data, parent=parent, parents=_parents(parent, conversations, reward_model))


def grpo_data(stage: GrpoSettings, conversations: Artifact, reward_model: Artifact | None) -> GrpoData:
    """What a job of such a stage learns from."""
    return GrpoData(
        **_shared(stage, conversations, reward_model),
        kl_coef=stage.kl_coef,
        anchor_rate=stage.anchor_rate,
        clip_low=stage.clip_low,
        clip_high=stage.clip_high,
        normalization=stage.normalization,
        scale_rewards=stage.scale_rewards,
    )


def ppo(
    ctx: StageContext,
    stage: PpoStage,
    parent: Artifact,
    conversations: Artifact,
    reward_model: Artifact | None,
    value_model: Artifact | None,
    pretraining: Artifact | None,
) -> Artifact:
    """Proximal policy optimization."""
    data = PpoData(
        **_shared(stage, conversations, reward_model),
        kl_coef=stage.kl_coef,
        kl_target=stage.kl_target,
        kl_horizon=stage.kl_horizon,
        clip=stage.clip,
        value_clip=stage.value_clip,
        gamma=stage.gamma,
        gae_lambda=stage.gae_lambda,
        value_initial=value_model.path if value_model else None,
        value_optimizer=stage.value_optimizer,
        value_warmup_steps=stage.value_warmup_steps,
        pretraining=pretraining.path if pretraining else None,
        pretraining_coef=stage.pretraining_coef,
    )
    parents = _parents(parent, conversations, reward_model, value_model, pretraining)
    return train(ctx, stage, data=data, parent=parent, parents=parents)


def online_dpo(
    ctx: StageContext, stage: OnlineDpoStage, parent: Artifact, conversations: Artifact, reward_model: Artifact | None
) -> Artifact:
    """Direct preference optimization on the policy's own latest answers."""
    data = OnlineDpoData(
        **_shared(stage, conversations, reward_model),
        beta=stage.beta,
        label_smoothing=stage.label_smoothing,
        loss_type=stage.loss_type,
    )
    return train(ctx, stage, data=data, parent=parent, parents=_parents(parent, conversations, reward_model))


def _shared(stage: ReinforcementStage, conversations: Artifact, reward_model: Artifact | None) -> dict[str, Any]:
    rewards: tuple[Reward, ...] = stage.rewards
    if reward_model:
        rewards = (*rewards, ModelReward(checkpoint=reward_model.path, weight=stage.reward_model_weight))
    return {"conversations": conversations.path, "rollout": stage.rollout, "rewards": rewards}


def _parents(*artifacts: Artifact | None) -> list[Artifact]:
    return [artifact for artifact in artifacts if artifact]
