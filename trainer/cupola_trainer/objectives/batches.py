"""Assign an objective's samples to ranks and forward passes."""

from collections.abc import Mapping, Sequence

import numpy as np
from megatron.core import parallel_state

from cupola_trainer.config import BatchConfig
from cupola_trainer.data.batches import Batch, to_rank, without_padding
from cupola_trainer.objectives.base import Objective

Samples = Sequence[Sequence[int]]
"""Numbers of samples by micro-batch."""


def training_samples(objective: Objective, config: BatchConfig, first: int) -> Samples:
    """This rank's samples of the step that begins at sample `first`, by micro-batch.

    Samples are numbered across the job. A micro-batch has consecutive samples of the step, by width if the objective's
    rows are padded, so its members are the same in every layout.
    """
    step = range(first, first + config.global_batch_size)
    in_order = sorted(step, key=objective.width) if objective.padded else list(step)
    rows = _rows(config, config.num_microbatches(parallel_state.get_data_parallel_world_size()))
    return [in_order[micro.start : micro.stop] for micro in rows]


def read_batches(objective: Objective, samples: Samples) -> list[Batch]:
    """The micro-batches with these samples."""
    return [collate(objective, [objective.sample(index) for index in micro]) for micro in samples]


def heldout_batches(objective: Objective, config: BatchConfig, global_batches: int) -> list[Batch]:
    """This rank's micro-batches of the first held-out samples, the same on every call; empty if there are none.

    Samples that do not fill a last pass are left out; if there are too few for one pass, they are repeated.
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


def collate(objective: Objective, samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
    """A batch on this rank's device, with this context-parallel rank's part of every sequence."""
    batch = objective.collate(samples)
    return to_rank(without_padding(batch, objective.row_unit) if objective.padded else batch)


def _rows(config: BatchConfig, passes: int) -> list[range]:
    ranks, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
    starts = ((number * ranks + rank) * config.micro_batch_size for number in range(passes))
    return [range(start, start + config.micro_batch_size) for start in starts]
