"""Find the largest elements of a whole task vector without holding a model in memory."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cupola_trainer import runtime
from cupola_trainer.config import ModelConfig
from cupola_trainer.conversion.checkpoint_reader import StoredTensors
from cupola_trainer.conversion.mapping import rules
from cupola_trainer.optim.selection import magnitude_bits, thresholds


class TaskVectors:
    """Magnitudes of the models' task vectors, one tensor of one layer at a time: this rank's share."""

    def __init__(self, model: ModelConfig, stored: Sequence[StoredTensors], base: StoredTensors) -> None:
        self.stored, self.base = stored, base
        self.places = [(rule.key, index) for rule in rules(model) for index, _ in rule.places(model)]

    @property
    def size(self) -> int:
        """Number of elements in one task vector."""
        return sum(self.base.outline(*place).numel() for place in self.places)

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        for place in self.places[runtime.rank() :: runtime.world_size()]:
            base = self.base.read(*place).float()
            for i, stored in enumerate(self.stored):
                yield i, magnitude_bits(stored.read(*place).float() - base)


def smallest_kept(
    model: ModelConfig, stored: Sequence[StoredTensors], base: StoredTensors, density: float
) -> list[float]:
    """The magnitude reached by ceil(density * n) elements (or more, with ties) of each model's task vector.

    Reads every checkpoint four times. Called on every rank.
    """
    vectors = TaskVectors(model, stored, base)
    counts = [math.ceil(density * vectors.size)] * len(stored)
    return [float(value) for value in thresholds(vectors, counts, torch.device("cpu"))]
