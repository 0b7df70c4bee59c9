"""Losses on pairs of a better and a worse response, as pure functions of tensors."""

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
    else:
        raise ConfigError(f"DPO has no loss_type {loss_type!r}. Use sigmoid or ipo.")
    return losses, (beta * chosen).detach(), (beta * rejected).detach()


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
