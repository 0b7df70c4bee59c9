"""Differentiable sums over ranks for use in losses."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def summed(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Sum over a group's ranks, for when every rank computes the same loss: the gradient is passed through unchanged.

    Args:
        group: None for a single rank.
    """
    if group is None or group.size() == 1:
        return values
    total: Tensor = _Summed.apply(values, group, False)
    return total


def shared(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Sum over a group's ranks, for when each rank computes part of the loss: gradients are summed over the ranks."""
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
