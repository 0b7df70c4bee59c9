"""The tensors of a merged model, computed from those of the checkpoints."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cupola_trainer.config import MergeJob, ModelConfig
from cupola_trainer.conversion.checkpoint_reader import StoredTensors
from cupola_trainer.merging import methods
from cupola_trainer.merging.trimming import smallest_kept
from cupola_trainer.upcycling.experts import derived_seed

DENSITY = 0.2
"""Default density, as proposed for TIES (section 4)."""


class Merged:
    """The merged model's tensors by checkpoint key and (layer, expert) index, computed on demand."""

    def __init__(
        self, job: MergeJob, model: ModelConfig, stored: Sequence[StoredTensors], base: StoredTensors | None
    ) -> None:
        self.job, self.stored, self.base = job, stored, base
        self.weights = job.weights or (1.0,) * len(stored)
        self.density = job.density or DENSITY
        self.smallest: list[float] = []
        if job.method == "ties" and base:
            self.smallest = smallest_kept(model, stored, base, self.density)

    def __call__(self, key: str, index: tuple[int, ...]) -> Tensor:
        """One tensor of one layer (and expert)."""
        thetas = [stored.read(key, index) for stored in self.stored]
        base = self.base.read(key, index) if self.base else None
        return self._merge(thetas, base, self._generator(key, index)).to(thetas[0].dtype)

    def _merge(
        self, thetas: Sequence[Tensor], base: Tensor | None, generator: Callable[[int], torch.Generator]
    ) -> Tensor:
        job, weights = self.job, self.weights
        if job.method == "average":
            return methods.average(thetas, weights)
        if job.method == "slerp":
            return methods.slerp(thetas, weights, base)
        assert base is not None
        if job.method == "ties":
            return methods.ties(thetas, weights, base, smallest=self.smallest, scale=job.scale)
        return methods.dare(thetas, weights, base, density=self.density, scale=job.scale, generator=generator)

    def _generator(self, key: str, index: tuple[int, ...]) -> Callable[[int], torch.Generator]:
        place = "/".join((key, *map(str, index)))
        return lambda i: torch.Generator().manual_seed(derived_seed(self.job.seed, f"{place}/model {i}"))
