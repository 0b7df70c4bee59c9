"""Which samples each rank sees in which forward pass, as tensors on its device."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from cupola_trainer import runtime
from cupola_trainer.config import BatchConfig
from cupola_trainer.models.attention import zigzag
from cupola_trainer.objectives import Batch, Objective

PER_TOKEN = frozenset(
    {
        "tokens", "labels", "loss_mask", "position_ids", "row_starts", "shares", "weights", "advantages", "old_logps",
        "ref_logps", "old_values", "returns", "pretraining", "teacher_tokens", "teacher_logprobs",
    }
)  # fmt: skip
"""A batch's tensors [b, s] of which each context-parallel rank has its own tokens' part."""


def training_samples(config: BatchConfig, first: int) -> list[range]:
    """This rank's samples of the step that begins at sample `first`, by micro-batch.

    Samples are numbered through the job; each micro-batch is a run of consecutive ones, so its members are the same in
    every layout.
    """
    rows = _rows(config, config.num_microbatches(parallel_state.get_data_parallel_world_size()))
    return [range(first + micro.start, first + micro.stop) for micro in rows]


def read_batches(objective: Objective, samples: Sequence[range]) -> list[Batch]:
    """The micro-batches of these samples."""
    return [collate(objective, [objective.sample(index) for index in micro]) for micro in samples]


def heldout_batches(objective: Objective, config: BatchConfig, global_batches: int) -> list[Batch]:
    """This rank's micro-batches of the first held-out samples, the same at every call; empty where there are none.

    Only whole passes count; fewer samples than one pass needs are repeated.
    """
    samples: list[Mapping[str, np.ndarray]] = []
    while len(samples) < global_batches * config.global_batch_size:
        sample = objective.heldout(len(samples))
        if sample is None:
            break
        samples.append(sample)
    if not samples:
        return []
    per_pass = config.micro_batch_size * parallel_state.get_data_parallel_world_size()
    rows = _rows(config, max(1, len(samples) // per_pass))
    return [collate(objective, [samples[row % len(samples)] for row in micro]) for micro in rows]


def _rows(config: BatchConfig, passes: int) -> list[range]:
    ranks, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
    starts = ((number * ranks + rank) * config.micro_batch_size for number in range(passes))
    return [range(start, start + config.micro_batch_size) for start in starts]


def collate(objective: Objective, samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
    """A batch on this rank's device, with this context-parallel rank's part of each sequence."""
    return to_rank(objective.collate(samples))


def to_rank(batch: Batch) -> Batch:
    """Move a collated batch to this rank's device and keep its part of each sequence."""
    size = parallel_state.get_context_parallel_world_size()
    if size > 1:
        local_length = batch["tokens"].size(1) // size
        positions = zigzag(local_length, parallel_state.get_context_parallel_rank(), size)
        batch = {name: _take(name, tensor, positions) for name, tensor in batch.items()}
    return {name: tensor.to(runtime.device()) for name, tensor in batch.items()}


def from_context_ranks(values: Tensor) -> Tensor:
    """Whole sequences [b, s], from each context-parallel rank's part of them [b, s / cp]."""
    size = parallel_state.get_context_parallel_world_size()
    if size == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(size)]
    dist.all_gather(parts, values.contiguous(), group=parallel_state.get_context_parallel_group())
    whole = torch.empty(values.size(0), size * values.size(1), dtype=values.dtype, device=values.device)
    for rank, part in enumerate(parts):
        whole[:, zigzag(values.size(1), rank, size)] = part
    return whole


def _take(name: str, tensor: Tensor, positions: Tensor) -> Tensor:
    return torch.index_select(tensor, 1, positions) if name in PER_TOKEN else tensor
