"""Frozen models next to the one in training, and forward passes over a whole rollout."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from cupola_trainer import checkpoint, models
from cupola_trainer.config import LayoutConfig, ModelConfig
from cupola_trainer.data.batches import Batch
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
    """Apply `forward` to all rows in micro-batches [rows, s]. Data-parallel ranks share the work."""
    ranks, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
    rounds = -(-len(rollout) // (micro_batch_size * ranks))
    mine = []
    for number in range(rounds):
        first = (number * ranks + rank) * micro_batch_size
        # repeat the last row, so that all passes have the same shape and all ranks the same number of passes
        rows = [min(first + offset, len(rollout) - 1) for offset in range(micro_batch_size)]
        mine.append(forward(rollout.batch(rows)).cpu().numpy())
    shares: list[list[np.ndarray]] = [[]] * ranks
    dist.all_gather_object(shares, mine, group=parallel_state.get_data_parallel_group())
    in_order = [shares[number % ranks][number // ranks] for number in range(rounds * ranks)]
    return np.concatenate(in_order)[: len(rollout)]
