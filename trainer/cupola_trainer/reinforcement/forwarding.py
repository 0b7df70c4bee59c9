"""Models that only look: frozen ones beside the one in training, and what any of them says of a rollout."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from cupola_platform.errors import ConfigError
from cupola_trainer import checkpoint, models, runtime
from cupola_trainer.config import ModelConfig, TrainJob
from cupola_trainer.objectives.objective import Batch
from cupola_trainer.reinforcement.rollouts import Rollout

Chunks = list[torch.nn.Module]


def initial_of(job: TrainJob) -> Path:
    """The checkpoint that a job starts from.

    Raises:
        ConfigError: it starts from random weights.
    """
    if job.initial is None:
        raise ConfigError(
            f"the objective {job.data.objective} needs an initial checkpoint: a model without one cannot answer. Name one."
        )
    return job.initial


def frozen(job: TrainJob, folder: Path, model: ModelConfig, dtype: torch.dtype | None = None) -> Chunks:
    """A checkpoint in the job's layout, never trained.

    Args:
        dtype: none for the job's precision.

    Raises:
        CorruptArtifactError: it does not verify.
    """
    chunks: Chunks = list(models.build(model, job.parallel, seed=None, dtype=dtype or runtime.dtype(job.precision)))
    checkpoint.load_weights(folder, chunks)
    for chunk in chunks:
        chunk.eval().requires_grad_(False)
    return chunks


def over_rows(rollout: Rollout, job: TrainJob, forward: Callable[[Batch], torch.Tensor]) -> np.ndarray:
    """What `forward` gives for all rows [rows, s], micro-batch by micro-batch; data-parallel ranks share the work."""
    ranks, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
    size = job.batch.micro_batch_size
    rounds = -(-len(rollout) // (size * ranks))
    mine = []
    for number in range(rounds):
        first = (number * ranks + rank) * size
        rows = [
            min(first + offset, len(rollout) - 1) for offset in range(size)
        ]  # the shape stays, and so do the rounds
        mine.append(forward(rollout.batch(rows)).cpu().numpy())
    shares: list[list[np.ndarray]] = [[]] * ranks
    dist.all_gather_object(shares, mine, group=parallel_state.get_data_parallel_group())
    in_order = [shares[number % ranks][number // ranks] for number in range(rounds * ranks)]
    return np.concatenate(in_order)[: len(rollout)]
