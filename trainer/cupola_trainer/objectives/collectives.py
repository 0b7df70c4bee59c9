"""Sums over ranks that a loss is made of, with the gradients that belong to them."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def summed(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum over a group's ranks, where every rank goes on to the same loss: each part's gradient is the sum's.

    Args:
        group: none for one rank.
    """
    if group is None or group.size() == 1:
        return values
    total: Tensor = _Summed.apply(values, group, False)
    return total


def shared(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum over a group's ranks, where each rank goes on to a part of the loss:
    a part's gradient is the sum of theirs."""
    if group is None or group.size() == 1:
        return values
    total: Tensor = _Summed.apply(values, group, True)
    return total


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, group: dist.ProcessGroup, both_ways: bool) -> Tensor:
        ctx.group, ctx.both_ways = group, both_ways
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        if ctx.both_ways:
            gradient = gradient.clone()
            dist.all_reduce(gradient, group=ctx.group)
        return gradient, None, None
