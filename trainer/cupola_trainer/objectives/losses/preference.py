"""Losses on pairs of a better and a worse response, as pure functions of tensors."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cupola_platform.errors import ConfigError


def dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    loss_type: str = "sigmoid",
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses and implicit rewards of preference pairs, from log-probabilities of full responses; all tensors [pairs].

    With h = log(policy/ref)(chosen) - log(policy/ref)(rejected):
    "sigmoid": -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h), e the label smoothing (Rafailov et al. 2023,
    equation 7; with smoothing, Mitchell's conservative DPO).
    "ipo": (h - 1 / (2 beta))^2 (Azar et al. 2023, equation 17). As in the paper, h sums over tokens; TRL divides each
    response's part by its length, which suits a larger beta.
    "apo_zero": 1 - sigmoid(beta log ratio(chosen)) + sigmoid(beta log ratio(rejected)); "apo_down": sigmoid(beta log
    ratio(chosen)) + 1 - sigmoid(beta h) (D'Oosterlinck et al. 2024, equations 7 and 8).

    Returns:
        losses, chosen rewards and rejected rewards; a reward is beta log(policy/ref), without gradient.
    """
    chosen = policy_chosen_logps - ref_chosen_logps
    rejected = policy_rejected_logps - ref_rejected_logps
    h = chosen - rejected
    if loss_type == "sigmoid":
        losses = -(1 - label_smoothing) * F.logsigmoid(beta * h) - label_smoothing * F.logsigmoid(-beta * h)
    elif loss_type == "ipo":
        losses = (h - 1 / (2 * beta)) ** 2
    elif loss_type == "apo_zero":
        losses = 1 - torch.sigmoid(beta * chosen) + torch.sigmoid(beta * rejected)
    elif loss_type == "apo_down":
        losses = torch.sigmoid(beta * chosen) + 1 - torch.sigmoid(beta * h)
    else:
        raise ConfigError(f"DPO has no loss_type {loss_type!r}. Use sigmoid, ipo, apo_zero or apo_down.")
    return losses, (beta * chosen).detach(), (beta * rejected).detach()


def kto_loss(
    chosen: Tensor,
    rejected: Tensor,
    mismatched: Tensor,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """KTO's losses of both responses of each pair, their mean, and implicit rewards (Ethayarajh et al. 2024, equation
    7); all tensors [pairs], log(policy/ref) of full responses.

    With z the mean of `mismatched`, at least 0: wd (1 - sigmoid(beta (chosen - z))) and wu (1 - sigmoid(beta (z -
    rejected))).

    Args:
        mismatched: of responses to other prompts, which estimate the KL to the reference; without gradient.

    Returns:
        losses, chosen rewards, rejected rewards, and z [].
    """
    z = mismatched.detach().mean().clamp(min=0)
    losses = (
        desirable_weight * (1 - torch.sigmoid(beta * (chosen - z)))
        + undesirable_weight * (1 - torch.sigmoid(beta * (z - rejected)))
    ) / 2
    return losses, (beta * chosen).detach(), (beta * rejected).detach(), z


def reference_free_loss(
    chosen: Tensor,
    rejected: Tensor,
    lengths: tuple[Tensor, Tensor],
    *,
    loss_type: str,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    target_margin: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses and implicit rewards of preference pairs without a reference; all tensors [pairs].

    With d the difference of log-probabilities, of whole responses for "cpo", of their means over tokens otherwise:
    "cpo": -log sigmoid(beta d) (Xu et al. 2024, equation 5). "simpo": -log sigmoid(beta d - target margin) (Meng et al.
    2024, equation 6). "orpo": -beta log sigmoid(d - (log(1 - p chosen) - log(1 - p rejected))), p the exponential of
    the mean (Hong et al. 2024, equation 7). CPO and ORPO add the chosen responses' token loss.

    Args:
        chosen, rejected: log-probabilities of full responses.
        lengths: tokens of the chosen and of the rejected responses.

    Returns:
        losses, chosen rewards and rejected rewards; a reward is beta times the log-probability, without gradient.
    """
    if loss_type != "cpo":
        chosen, rejected = chosen / lengths[0].clamp(min=1), rejected / lengths[1].clamp(min=1)
    if loss_type == "orpo":
        odds = chosen - rejected - (_log1mexp(chosen) - _log1mexp(rejected))
        losses = -beta * F.logsigmoid(odds)
    else:
        h = beta * (chosen - rejected) - (target_margin if loss_type == "simpo" else 0.0)
        losses = -(1 - label_smoothing) * F.logsigmoid(h) - label_smoothing * F.logsigmoid(-h)
    return losses, (beta * chosen).detach(), (beta * rejected).detach()


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) of negative x, exact near 0 and far from it (Maechler 2012)."""
    x = x.clamp(max=-torch.finfo(x.dtype).tiny)
    near = x > -math.log(2)
    return torch.where(
        near, torch.log(-torch.expm1(torch.where(near, x, -1.0))), torch.log1p(-torch.exp(torch.where(near, -1.0, x)))
    )


def reward_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | None = None, *, center: float = 0.0) -> Tensor:
    """Bradley-Terry ranking loss with a margin (Llama 2, section 3.2.2): -log sigmoid(chosen - rejected - margin).

    Args:
        chosen: [pairs], rewards of the better responses.
        rejected: [pairs], rewards of the worse responses.
        margin: [pairs], the required difference; None for 0.
        center: weight of (chosen + rejected)^2, which keeps rewards centered on zero (Eisenstein et al. 2023).

    Returns:
        [pairs]
    """
    difference = chosen - rejected if margin is None else chosen - rejected - margin
    losses = -F.logsigmoid(difference)
    return losses + center * (chosen + rejected).square() if center else losses
