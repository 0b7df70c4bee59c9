"""Frozen models next to the one in training, and forward passes over a whole rollout."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from cupola_trainer import checkpoint, models
from cupola_trainer.config import LayoutConfig, ModelConfig
from cupola_trainer.data.batches import Batch, row_unit, without_padding
from cupola_trainer.forward.schedule import Chunks
from cupola_trainer.rl.rollouts import Rollout


def load_frozen(folder: Path, model: ModelConfig, layout: LayoutConfig, dtype: torch.dtype) -> Chunks:
    """Load a checkpoint as a frozen model.

    Raises:
        CorruptArtifactError: the checkpoint does not verify.
    """
    chunks: Chunks = list(models.build(model, layout, seed=None, dtype=dtype))
    checkpoint.load_weights(folder, chunks)
    for chunk in chunks:
        chunk.eval().requires_grad_(False)
    return chunks


def over_rows(rollout: Rollout, micro_batch_size: int, forward: Callable[[Batch], torch.Tensor]) -> np.ndarray:
    """Apply `forward` to all rows in micro-batches of similar length [rows, s]; 0 after a row's last token.
    Data-parallel ranks share the work."""
    ranks, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
    ends = rollout.ends
    by_end = np.argsort(ends, kind="stable")
    rounds = -(-len(rollout) // (micro_batch_size * ranks))
    mine: list[tuple[np.ndarray, np.ndarray]] = []
    for number in range(rounds):
        first = (number * ranks + rank) * micro_batch_size
        # repeat the last row: expert parallelism needs as many passes of as many rows on every rank
        rows = by_end[[min(first + offset, len(rollout) - 1) for offset in range(micro_batch_size)]]
        batch = without_padding(rollout.batch(rows.tolist()), row_unit(), used=int(ends[rows].max()) + 1)
        mine.append((rows, forward(batch).cpu().numpy()))
    shares: list[list[tuple[np.ndarray, np.ndarray]]] = [[]] * ranks
    dist.all_gather_object(shares, mine, group=parallel_state.get_data_parallel_group())
    whole = np.zeros(rollout.mask.shape, dtype=np.float32)
    for rows, values in (part for share in shares for part in share):
        whole[rows, : values.shape[1]] = values
    return whole
