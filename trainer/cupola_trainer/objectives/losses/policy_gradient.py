"""Advantages, losses and token weights of GRPO, some shared with PPO, as pure functions of tensors."""

from typing import Literal

import torch
from torch import Tensor

from cupola_platform.errors import ConfigError

Normalization = Literal["response", "token", "constant"]
Baseline = Literal["mean", "leave_one_out"]
Scale = Literal["group", "rollout", "none"]
KlEstimator = Literal["k1", "k2", "k3"]


def group_advantages(
    rewards: Tensor,
    valid: Tensor | None = None,
    *,
    baseline: Baseline = "mean",
    scale: Scale = "group",
    eps: float = 1e-4,
) -> Tensor:
    """Each reward minus a baseline from its group of responses to one prompt, divided by a standard deviation + eps.

    GRPO (Shao et al. 2024, section 4.1.2): the group's mean and deviation; the sample deviation and eps follow TRL, the
    paper specifies neither. Dr. GRPO (Liu et al. 2025) does not divide. RLOO (Ahmadian et al. 2024, equation 8): the
    mean of the others, not divided. REINFORCE++ with a baseline (Hu et al. 2025): the group's mean, and the deviation
    over the rollout.

    Args:
        rewards: [groups, n].
        valid: [groups, n], false where a response has no reward: it gets 0 and is left out of the statistics.
            None if all are valid.

    Returns:
        [groups, n]; 0 in groups with fewer than two rewards, which have nothing to compare.

    Raises:
        ConfigError: a group has one response.
    """
    if rewards.size(1) < 2:
        raise ConfigError(
            "samples_per_prompt=1: advantages compare responses to the same prompt. Use samples_per_prompt=2 or more."
        )
    valid = torch.ones_like(rewards, dtype=torch.bool) if valid is None else valid
    count = valid.sum(dim=1, keepdim=True)
    kept = rewards.masked_fill(~valid, 0)
    centred = (kept - kept.sum(dim=1, keepdim=True) / count.clamp(min=1)).masked_fill(~valid, 0)
    advantages = centred if baseline == "mean" else centred * count / (count - 1).clamp(min=1)
    if scale == "group":
        std = (centred.square().sum(dim=1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
        advantages = advantages / (std + eps)
    elif scale == "rollout":
        advantages = advantages / (rewards[valid].std() + eps)
    return advantages.masked_fill(count < 2, 0)


def clipped_ratio_loss(
    log_ratio: Tensor, advantages: Tensor, *, low: float = 0.2, high: float = 0.2
) -> tuple[Tensor, Tensor]:
    """-min(ratio A, clip(ratio, 1 - low, 1 + high) A) (Schulman et al. 2017, equation 7).

    Args:
        log_ratio: log of the policy's probability over that at sampling time, of the same shape as advantages.

    Returns:
        losses, and where clipping blocks the gradient.
    """
    ratio = log_ratio.exp()
    plain, clipped = ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages
    return -torch.minimum(plain, clipped), clipped < plain


def clipped_weight_loss(
    logps: Tensor, log_ratio: Tensor, advantages: Tensor, *, high: float = 0.2
) -> tuple[Tensor, Tensor]:
    """-min(ratio, 1 + high) A log p, the first factor without gradient: every token keeps one (CISPO, Chen et al. 2025,
    equations 4 and 5, without a lower bound).

    All tensors have the same shape. The second result is true where the ratio is clipped.
    """
    ratio = log_ratio.detach().exp()
    return -ratio.clamp(max=1 + high) * advantages * logps, ratio > 1 + high


def kl_estimate(logps: Tensor, ref_logps: Tensor, kind: KlEstimator = "k3") -> Tensor:
    """Elementwise estimate of KL(policy || reference) at tokens sampled from the policy (Schulman 2020).

    k1: log policy - log reference, unbiased, may be negative; its gradient has mean zero, so as a loss it regularizes
    nothing. k2: half its square, biased, whose gradient is that of the KL. k3: ref/policy - 1 - log(ref/policy),
    unbiased, never negative, with less variance (GRPO's equation 4).
    """
    difference = ref_logps - logps
    if kind == "k1":
        return -difference
    return difference.square() / 2 if kind == "k2" else difference.exp() - difference - 1


def length_penalty(lengths: Tensor, longest: int, buffer: int) -> Tensor:
    """Addition to the reward of a response within `buffer` tokens of the longest: from 0 down to -1 (DAPO, Yu et al.
    2025, equation 13).

    Args:
        lengths: [...], in tokens.
        longest: maximum tokens of a response.
        buffer: 0 for none.
    """
    return -(lengths - (longest - buffer)).clamp(min=0) / max(buffer, 1) * (buffer > 0)


def token_weights(mask: Tensor, normalization: Normalization, longest: int) -> Tensor:
    """Weights of the token losses in an optimizer step.

    Args:
        mask: [rows, s] of the whole step, over all ranks; 1 where a token is trained on.
        normalization: "response", the mean over responses of the mean over their tokens (GRPO as published,
            equation 3); "token", the mean over all tokens (DAPO, equation 8; PPO); "constant", over `longest` tokens
            per response (Dr. GRPO).
        longest: maximum tokens per response.

    Returns:
        [rows, s]; the step's loss is (sum of weights x token losses) / rows.
    """
    mask = mask.to(torch.float32)
    if normalization == "response":
        return mask / mask.sum(dim=1, keepdim=True).clamp(min=1)
    if normalization == "token":
        return mask * (len(mask) / mask.sum().clamp(min=1))
    return mask / longest
