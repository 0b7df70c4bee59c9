"""All-gather and reduce-scatter of parts of unequal length over gloo, which supports only equal ones.

Tensor-parallel experts exchange as many rows as the router sent to each rank; with expert parallelism or limited
capacity these numbers differ.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def parts_of_any_length(mappings: Any) -> None:
    """Patch the two functions of `megatron.core.tensor_parallel.mappings`, for gloo groups."""
    gather, reduce_scatter = mappings._gather_along_first_dim, mappings._reduce_scatter_along_first_dim

    def gather_any(input_: Tensor, group: Any, output_split_sizes: Sequence[int] | None = None, *rest: Any) -> Tensor:
        if _on_gloo(group, output_split_sizes):
            return _gather(input_, group, output_split_sizes or ())
        whole: Tensor = gather(input_, group, output_split_sizes, *rest)
        return whole

    def reduce_any(input_: Tensor, group: Any, input_split_sizes: Sequence[int] | None = None, *rest: Any) -> Tensor:
        if _on_gloo(group, input_split_sizes):
            return _reduce_scatter(input_, group, input_split_sizes or ())
        part: Tensor = reduce_scatter(input_, group, input_split_sizes, *rest)
        return part

    mappings._gather_along_first_dim, mappings._reduce_scatter_along_first_dim = gather_any, reduce_any


def _on_gloo(group: Any, sizes: Sequence[int] | None) -> bool:
    return sizes is not None and len(set(sizes)) > 1 and dist.get_backend(group) == "gloo"


def _gather(part: Tensor, group: Any, sizes: Sequence[int]) -> Tensor:
    """[own rows, ...] -> [sum(sizes), ...], padding each part to the longest for the transfer."""
    longest = max(sizes)
    padded = part.new_zeros(longest, *part.shape[1:])
    padded[: len(part)] = part
    gathered = part.new_empty(len(sizes) * longest, *part.shape[1:])
    dist.all_gather_into_tensor(gathered, padded, group=group)
    return torch.cat([gathered[i * longest : i * longest + size] for i, size in enumerate(sizes)])


def _reduce_scatter(whole: Tensor, group: Any, sizes: Sequence[int]) -> Tensor:
    """[sum(sizes), ...] -> [own rows, ...]: the sum over the group of this rank's rows."""
    total = whole.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    first = sum(sizes[: group.rank()])
    return total[first : first + sizes[group.rank()]].clone()
