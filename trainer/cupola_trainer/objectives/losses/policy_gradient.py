"""Advantages, losses and token weights of GRPO, some shared with PPO, as pure functions of tensors."""

from typing import Literal

import torch
from torch import Tensor

from cupola_platform.errors import ConfigError

Normalization = Literal["response", "token", "constant"]


def group_advantages(rewards: Tensor, valid: Tensor | None = None, *, scale: bool = True, eps: float = 1e-4) -> Tensor:
    """(r - mean) / (std + eps) over each group of responses to one prompt (Shao et al. 2024, section 4.1.2).

    The sample standard deviation and eps follow TRL; the paper specifies neither.

    Args:
        rewards: [groups, n].
        valid: [groups, n], false where a response has no reward: it gets 0 and is left out of the statistics.
            None if all are valid.
        scale: divide by the standard deviation; False as in Dr. GRPO (Liu et al. 2025).

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
    std = (centred.square().sum(dim=1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    advantages = centred / (std + eps) if scale else centred
    return advantages.masked_fill(count < 2, 0)


def clipped_ratio_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, *, low: float = 0.2, high: float = 0.2
) -> tuple[Tensor, Tensor]:
    """-min(ratio A, clip(ratio, 1 - low, 1 + high) A), ratio = exp(logps - old_logps) (Schulman et al. 2017,
    equation 7).

    All tensors have the same shape, such as [b, s]. The second result is true where clipping blocks the gradient.
    """
    ratio = (logps - old_logps).exp()
    plain, clipped = ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages
    return -torch.minimum(plain, clipped), clipped < plain


def kl_estimate(logps: Tensor, ref_logps: Tensor, kind: Literal["k1", "k3"] = "k3") -> Tensor:
    """Elementwise estimate of KL(policy || reference) at tokens sampled from the policy (Schulman 2020).

    k1: log policy - log reference, unbiased, may be negative. k3: ref/policy - 1 - log(ref/policy), unbiased, never
    negative, with less variance (GRPO's equation 4).
    """
    difference = ref_logps - logps
    return -difference if kind == "k1" else difference.exp() - difference - 1


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
