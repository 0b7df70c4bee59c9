"""Communication between tensor-parallel ranks, as differentiable functions, and what Megatron marks parameters with."""

from typing import Any

import torch
import torch.distributed as dist
import torch.utils.checkpoint
from torch import Tensor

from ..absent import absent
from .fp8 import FP8GlobalStateManager

CudaRNGStatesTracker = absent("pytorch.distributed.CudaRNGStatesTracker")
activation_recompute_forward = absent("pytorch.distributed.activation_recompute_forward")


def set_tensor_model_parallel_attributes(tensor: Tensor, is_parallel: bool, dim: int, stride: int) -> None:
    """Mark a parameter as one rank's part of a tensor split along `dim`."""
    tensor.tensor_model_parallel = is_parallel  # type: ignore[attr-defined]
    tensor.partition_dim = dim  # type: ignore[attr-defined]
    tensor.partition_stride = stride  # type: ignore[attr-defined]


def _gather(x: Tensor, group: Any) -> Tensor:
    parts = [torch.empty_like(x) for _ in range(group.size())]
    dist.all_gather(parts, x.contiguous(), group=group)
    return torch.cat(parts)


def _sum(x: Tensor, group: Any) -> Tensor:
    total = x.clone()
    dist.all_reduce(total, group=group)
    return total


def _sum_of_own_part(x: Tensor, group: Any) -> Tensor:
    return _sum(x, group).chunk(group.size())[group.rank()].contiguous()


def _same(x: Tensor, group: Any) -> Tensor:
    return x.view_as(x)


def _pair(name: str, there: Any, back: Any) -> Any:
    """A function of a tensor and a group that computes `there` forward and `back` on the gradient."""

    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        result: Tensor = there(x, group)
        return result

    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return back(gradient, ctx.group), None

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(name, (torch.autograd.Function,), methods)
    return function.apply


gather_sequence = _pair("GatherSequence", _gather, _sum_of_own_part)
"""[s / ranks, ...] of each rank -> [s, ...]; each rank's gradient is a part of the sum."""

scatter_sequence = _pair("ScatterSequence", _sum_of_own_part, _gather)
"""Terms [s, ...] of a sum -> this rank's [s / ranks, ...] of it."""

add_up = _pair("AddUp", _sum, _same)
"""Terms of a sum -> the sum, on every rank."""

add_up_gradients = _pair("AddUpGradients", _same, _sum)
"""The same on every rank, each of which computes a part of what follows."""


def checkpoint(
    function: Any,
    *args: Any,
    distribute_saved_activations: bool = False,
    get_rng_state_tracker: Any = None,
    tp_group: Any = None,
    use_reentrant: bool = True,
    **kwargs: Any,
) -> Any:
    """Recompute `function` in the backward pass, under the FP8 region of its forward pass. The original also brings
    back the scales of that time, which the stand-in, without them, refuses to do without."""
    manager = FP8GlobalStateManager
    region = manager.enabled, manager.recipe, manager.group
    if distribute_saved_activations or kwargs or (region[0] and manager.get_fp8_recipe().delayed()):
        raise NotImplementedError("the stand-in for Transformer Engine recomputes without delayed scaling only")

    def in_region(*values: Any) -> Any:
        before = manager.enabled, manager.recipe, manager.group
        manager.enabled, manager.recipe, manager.group = region
        try:
            return function(*values)
        finally:
            manager.enabled, manager.recipe, manager.group = before

    return torch.utils.checkpoint.checkpoint(in_region, *args, use_reentrant=use_reentrant)
