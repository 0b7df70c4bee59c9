"""Faster paths for work that Megatron does in every layout but that some layouts do not need."""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROW = 4096
"""Elements per partial sum of squares."""


def one_rank_shares_nothing(mappings: Any) -> None:
    """In a tensor-parallel group of one, use the identity without an autograd function."""

    def unless_alone(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(x: Tensor, group: Any = None) -> Tensor:
            return x if group is not None and group.size() == 1 else function(x, group)

        return call

    for name in ("copy_to_tensor_model_parallel_region", "reduce_from_tensor_model_parallel_region"):
        setattr(mappings, name, unless_alone(getattr(mappings, name)))


def plain_linear_on_one_rank(layers: Any) -> None:
    """Use torch's linear for layers without communication: its backward needs no Python."""
    original = layers.linear_with_grad_accumulation_and_async_allreduce

    @wraps(original)  # keeps the attributes that the original sets on itself
    def linear(input: Tensor, weight: Tensor, bias: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        special = ("gradient_accumulation_fusion", "allreduce_dgrad", "sequence_parallel", "grad_output_buffer")
        if args or any(kwargs.get(name) for name in special):
            output: Tensor = original(input, weight, bias, *args, **kwargs)
            return output
        return F.linear(input, weight, bias)

    layers.linear_with_grad_accumulation_and_async_allreduce = linear


def many_tensors_at_once(utils: Any) -> None:
    """Multi-tensor functions for use without Apex, without a temporary per tensor."""

    def l2_norm(chunk_size: int, flag: Tensor, lists: list[list[Tensor]], *unused: Any) -> tuple[Tensor, None]:
        norms = torch.cat([norms for tensors in lists for tensor in tensors for norms in _norms_of_rows(tensor)])
        return torch.linalg.vector_norm(norms, dtype=torch.float64).float().view(1), None

    def scale(chunk_size: int, flag: Tensor, lists: list[list[Tensor]], factor: float) -> None:
        source, target = lists
        if source is not target:
            torch._foreach_copy_(target, source)
        if factor != 1:
            torch._foreach_mul_(target, factor)

    utils.local_multi_tensor_l2_norm, utils.local_multi_tensor_scale = l2_norm, scale


def _norms_of_rows(x: Tensor) -> Iterator[Tensor]:
    """Partial norms whose norm is that of x: [rows] and, for remaining elements, [1].

    On a CPU torch accumulates the squares of an fp32 tensor in a few sums, which lose small terms: the norm is too low
    by 1e-5 at a million elements and by 3e-3 at 39 million, and so differs between layouts, which split x.
    """
    flat = x.reshape(-1)
    end = len(flat) - len(flat) % ROW
    yield torch.linalg.vector_norm(flat[:end].view(-1, ROW), dim=1)
    if end < len(flat):
        yield torch.linalg.vector_norm(flat[end:]).view(1)
