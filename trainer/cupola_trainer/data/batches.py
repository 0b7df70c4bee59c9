"""Moving a collated batch to this rank's device and slicing it for context parallelism."""

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from cupola_trainer.models.attention.contexts import zigzag
from cupola_trainer.runtime.copies import to_device

Batch = dict[str, Tensor]
"""tokens, labels, position_ids, loss_mask [b, s], plus the objective's own: [b, s, ...] per token, or other shapes.

Rows of several texts also have "segments" [b, s], the text that each token belongs to: whole rows, on the host."""


def to_rank(batch: Batch) -> Batch:
    """Move a collated batch to this rank's device and keep its part of each sequence."""
    whole = {"segments": batch["segments"]} if "segments" in batch else {}
    size = parallel_state.get_context_parallel_world_size()
    if size > 1:
        length = batch["tokens"].size(1)
        positions = zigzag(length // size, parallel_state.get_context_parallel_rank(), size)
        batch = {name: _local_part(tensor, length, positions) for name, tensor in batch.items()}
    return {name: to_device(tensor) for name, tensor in batch.items()} | whole


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
    per_token = tensor.dim() > 1 and tensor.size(1) == length
    return torch.index_select(tensor, 1, positions) if per_token else tensor
