"""PPO with a value model: rewards, advantages and losses as pure functions of tensors, and KL controllers."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """A response's score at its last token, minus `kl_coef` times the KL at each (Ziegler et al. 2019, section 2).

    Args:
        scores: [rows].
        kl: [rows, n], an estimate at each token.
        mask: [rows, n], 1 on a response's tokens, which come first; 0 after them. An empty response gets no reward.
    """
    rewards = -kl_coef * kl * mask
    last = (mask.sum(dim=1).long() - 1).clamp(min=0)[:, None]
    return rewards.scatter_add(1, last, scores[:, None].to(rewards.dtype)) * mask


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, gae_lambda: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (Schulman et al. 2016, equation 16), and returns = advantages + values.

    Args:
        rewards, values: [rows, n]; a value is that of the state before the token is sampled.
        mask: [rows, n], 1 on a response's tokens, which come first; the value after the last token is 0.
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
    """Normalize to mean 0 and (sample) variance 1 over the mask; 0 elsewhere. [rows, n]"""
    count = mask.sum().clamp(min=1)
    centred = (values - (values * mask).sum() / count) * mask
    variance = centred.square().sum() / (count - 1).clamp(min=1)
    return centred * torch.rsqrt(variance + 1e-8)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float) -> tuple[Tensor, Tensor]:
    """Half the larger squared error of the value and of the value clipped to within `clip` of the old one; one shape.

    As in PPO's reference code (Schulman et al. 2017); the paper gives only the unclipped error. The second result is
    true where clipping blocks the gradient.
    """
    held = old_values + (values - old_values).clamp(-clip, clip)
    plain, clipped = (values - returns).square(), (held - returns).square()
    return 0.5 * torch.maximum(plain, clipped), clipped > plain


class KlController(Protocol):
    """The weight of the KL penalty over the course of training."""

    value: float

    def update(self, kl: float, responses: int) -> None:
        """Update with the mean KL of `responses` responses, summed over each one's tokens."""
        ...


@dataclass
class FixedKl:
    """A constant weight."""

    value: float

    def update(self, kl: float, responses: int) -> None:
        """Do nothing."""


@dataclass
class AdaptiveKl:
    """A weight that keeps the KL near a target (Ziegler et al. 2019, section 2.2)."""

    value: float
    target: float
    """Nats per response."""
    horizon: float
    """Responses over which a relative error of 20% changes the weight by 20%."""

    def update(self, kl: float, responses: int) -> None:
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.value *= 1 + error * responses / self.horizon
