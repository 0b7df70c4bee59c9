"""The sequence length of each micro-batch, and splitting rows to it."""

import numpy as np
import torch

from cupola_trainer.config import BatchConfig, LengthSchedule
from cupola_trainer.data.batches import Batch


class Lengths:
    """A length schedule applied to a job's samples, which are rows of `batch.sequence_length` tokens."""

    def __init__(self, schedule: LengthSchedule, batch: BatchConfig, seed: int) -> None:
        self.schedule, self.batch, self.seed = schedule, batch, seed

    def of(self, sample: int) -> int:
        """Length, in tokens, of the sequences in a row: the same for a whole micro-batch, in any layout."""
        longest = self.schedule.longest_at(sample // self.batch.global_batch_size)
        shares = self.schedule.token_shares(longest)
        micro_batch = sample // self.batch.micro_batch_size
        drawn = np.random.default_rng([self.seed, micro_batch]).choice(len(shares), p=list(shares.values()))
        return list(shares)[drawn]


def cut(batch: Batch, length: int) -> Batch:
    """Split rows of [b, s] tensors into sequences, each with its own positions: [b * s / length, length]."""
    shorter = {name: tensor.reshape(-1, length) for name, tensor in batch.items()}
    rows = shorter["tokens"].size(0)
    return shorter | {"position_ids": torch.arange(length).expand(rows, -1).contiguous()}
