"""The arithmetic of group relative policy optimization, and what PPO shares with it: pure functions of tensors."""

from typing import Literal

import torch
from torch import Tensor

from cupola_platform.errors import ConfigError

Normalization = Literal["response", "token", "constant"]


def group_advantages(rewards: Tensor, valid: Tensor | None = None, *, scale: bool = True, eps: float = 1e-4) -> Tensor:
    """(r - mean) / (std + eps) over each group of responses to one prompt (Shao et al. 2024, section 4.1.2).

    The standard deviation is that of a sample, and eps is added to it, as TRL does; the paper says neither.

    Args:
        rewards: [groups, n].
        valid: [groups, n], false where a response has no reward; none for all. It gets 0 and is in no statistic.
        scale: divide by the standard deviation; off, as Dr. GRPO (Liu et al. 2025).

    Returns:
        [groups, n]; 0 in a group with fewer than two rewards, which has nothing to be compared with.

    Raises:
        ConfigError: groups of one.
    """
    if rewards.size(1) < 2:
        raise ConfigError(
            "samples_per_prompt=1: a response's advantage is over others to the same prompt. Use samples_per_prompt=2 "
            "or more."
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

    All tensors have one shape, such as [b, s]. The second is true where clipping holds the gradient back.
    """
    ratio = (logps - old_logps).exp()
    plain, clipped = ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages
    return -torch.minimum(plain, clipped), clipped < plain


def kl_estimate(logps: Tensor, ref_logps: Tensor, kind: Literal["k1", "k3"] = "k3") -> Tensor:
    """KL(policy || reference) estimated at tokens that the policy drew, elementwise (Schulman 2020).

    k1: log policy - log reference, unbiased, of either sign. k3: ref/policy - 1 - log(ref/policy), unbiased, never
    negative, of less variance (GRPO's equation 4).
    """
    difference = ref_logps - logps
    return -difference if kind == "k1" else difference.exp() - difference - 1


def token_weights(mask: Tensor, normalization: Normalization, longest: int) -> Tensor:
    """What each token's loss counts in an optimizer step, so that the step's loss is their weighted sum over its rows.

    Args:
        mask: [rows, s] of the whole step, over all ranks: 1 where a token is trained on.
        normalization: "response", the mean over responses of the mean over their tokens (GRPO as published,
            equation 3); "token", the mean over all tokens (DAPO, equation 8; PPO); "constant", over `longest` tokens
            per response (Dr. GRPO).
        longest: most tokens of a response.

    Returns:
        [rows, s]; with them the step's loss is (sum of weights x token losses) / rows.
    """
    mask = mask.to(torch.float32)
    if normalization == "response":
        return mask / mask.sum(dim=1, keepdim=True).clamp(min=1)
    if normalization == "token":
        return mask * (len(mask) / mask.sum().clamp(min=1))
    return mask / longest
