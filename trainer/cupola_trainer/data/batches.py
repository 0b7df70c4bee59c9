"""Cutting a collated batch's padding, moving it to this rank's device and slicing it for context parallelism."""

import math

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from cupola_trainer.models.attention.contexts import zigzag
from cupola_trainer.runtime.copies import to_device

Batch = dict[str, Tensor]
"""tokens, labels, position_ids, loss_mask [b, s], plus the objective's own: [b, s, ...] per token, or other shapes.

Rows of several texts also have "segments" [b, s], the text that each token belongs to: whole rows, on the host."""

ROW_UNIT = 16
"""Padded rows are cut to a multiple of this many columns, or of what the ranks that share a sequence need: shapes
repeat, so kernels and allocations are reused."""


def to_rank(batch: Batch) -> Batch:
    """Move a collated batch to this rank's device and keep its part of each sequence."""
    whole = {"segments": batch["segments"]} if "segments" in batch else {}
    size = parallel_state.get_context_parallel_world_size()
    if size > 1:
        length = batch["tokens"].size(1)
        positions = zigzag(length // size, parallel_state.get_context_parallel_rank(), size)
        batch = {name: _local_part(tensor, length, positions) for name, tensor in batch.items()}
    return {name: to_device(tensor) for name, tensor in batch.items()} | whole


def row_unit() -> int:
    """Padded rows are cut to a multiple of this many columns."""
    ranks = parallel_state.get_context_parallel_world_size() * parallel_state.get_tensor_model_parallel_world_size()
    return math.lcm(ROW_UNIT, 2 * ranks)


def without_padding(batch: Batch, unit: int, used: int | None = None) -> Batch:
    """A batch of whole sequences without the columns at the end that change nothing: with causal attention, no token
    before them sees them.

    Args:
        unit: as many columns stay as a multiple of this, but never more than there are.
        used: columns that must stay; None for those up to the last one in the loss mask.
    """
    length = batch["tokens"].size(1)
    if used is None:
        used = int(batch["loss_mask"].any(dim=0).nonzero().max()) + 1 if batch["loss_mask"].any() else 1
    width = min(length, -(-used // unit) * unit)
    return {
        name: tensor[:, :width].contiguous() if _per_token(tensor, length) else tensor for name, tensor in batch.items()
    }


def from_context_ranks(values: Tensor) -> Tensor:
    """All-gather whole sequences [b, s] from the context-parallel ranks' parts [b, s / cp]."""
    size = parallel_state.get_context_parallel_world_size()
    if size == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(size)]
    dist.all_gather(parts, values.contiguous(), group=parallel_state.get_context_parallel_group())
    whole = torch.empty(values.size(0), size * values.size(1), dtype=values.dtype, device=values.device)
    for rank, part in enumerate(parts):
        whole[:, zigzag(values.size(1), rank, size)] = part
    return whole


def _local_part(tensor: Tensor, length: int, positions: Tensor) -> Tensor:
    """This rank's slice of a tensor [b, s, ...]; tensors without a token dimension are returned whole."""
    return torch.index_select(tensor, 1, positions) if _per_token(tensor, length) else tensor


def _per_token(tensor: Tensor, length: int) -> bool:
    return tensor.dim() > 1 and bool(tensor.size(1) == length)
