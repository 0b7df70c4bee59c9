"""The arithmetic of proximal policy optimization with a value model: pure functions of tensors,
and its KL controllers."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """A response's score at its last token, less `kl_coef` times the KL at each (Ziegler et al. 2019, section 2).

    Args:
        scores: [rows].
        kl: [rows, n], an estimate at each token.
        mask: [rows, n], 1 on a response's tokens, which come first; 0 after them. A row without any gets nothing.
    """
    rewards = -kl_coef * kl * mask
    last = (mask.sum(dim=1).long() - 1).clamp(min=0)[:, None]
    return rewards.scatter_add(1, last, scores[:, None].to(rewards.dtype)) * mask


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, gae_lambda: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (Schulman et al. 2016, equation 16), and returns = advantages + values.

    Args:
        rewards, values: [rows, n]; a value is that of the state before the token is chosen.
        mask: [rows, n], 1 on a response's tokens, which come first; the value after the last is 0.
    """
    rewards, values = rewards * mask, values * mask
    advantages = torch.zeros_like(values)
    following = advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.size(1))):
        advantage = rewards[:, t] + gamma * following - values[:, t] + gamma * gae_lambda * advantage
        advantages[:, t], following = advantage, values[:, t]
    advantages = advantages * mask
    return advantages, advantages + values


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and variance 1 (of a sample) over what the mask keeps; 0 elsewhere. [rows, n]"""
    count = mask.sum().clamp(min=1)
    centred = (values - (values * mask).sum() / count) * mask
    variance = centred.square().sum() / (count - 1).clamp(min=1)
    return centred * torch.rsqrt(variance + 1e-8)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float) -> tuple[Tensor, Tensor]:
    """Half the larger of the squared errors of the value and of the value held within `clip` of the old one; one shape.

    As in PPO's own code (Schulman et al. 2017); the paper gives the unclipped error only. The second is true where
    clipping holds the gradient back.
    """
    held = old_values + (values - old_values).clamp(-clip, clip)
    plain, clipped = (values - returns).square(), (held - returns).square()
    return 0.5 * torch.maximum(plain, clipped), clipped > plain


class KlController(Protocol):
    """The weight of the KL penalty, as training goes."""

    value: float

    def update(self, kl: float, responses: int) -> None:
        """Take in the mean KL of `responses` responses, summed over each one's tokens."""
        ...


@dataclass
class FixedKl:
    """The same weight throughout."""

    value: float

    def update(self, kl: float, responses: int) -> None:
        """Nothing changes it."""


@dataclass
class AdaptiveKl:
    """A weight that keeps the KL near a target (Ziegler et al. 2019, section 2.2)."""

    value: float
    target: float
    """Nats a response."""
    horizon: float
    """Responses over which an error of a fifth would change the weight by a fifth."""

    def update(self, kl: float, responses: int) -> None:
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.value *= 1 + error * responses / self.horizon
