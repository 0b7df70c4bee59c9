"""The interface between data and the training loop: samples by index, batches, loss."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar

import numpy as np
from torch import Tensor

from cupola_trainer.data.batches import ROW_UNIT, Batch
from cupola_trainer.forward.schedule import Reads

Forward = Callable[[Batch], Tensor]
"""Maps a collated batch to the model output that the objective reads [b, s], without gradient. Called on every rank
with the same batches."""


class Objective(ABC):
    """A training objective. Subclasses define samples, collation and loss; the rest has defaults.

    An objective has no state that changes during training, so a resumed job simply rebuilds it. Objectives with state
    are `online.OnlineObjective`s. Of the others, a thread calls `expect`, `sample` and `collate` for the next step
    while the main thread computes this one.
    """

    name: str

    reads: ClassVar[Reads] = "token_losses"
    """The model output passed to `loss`.

    "token_losses": [b, s], -log p(labels), in fp32; no rank ever holds all logits.
    "values": [b, s], a scalar head's output at each token, in fp32. The model's head must be "scalar".
    "logits": [b, s, v / tp], this tensor-parallel rank's part of the vocabulary, after soft-capping.
    """

    padded: bool = False
    """Whether rows end in padding that nothing depends on. Batches are then cut to their longest row, and a step's
    samples are put into micro-batches by `width`."""

    row_unit: int = ROW_UNIT
    """The cut rows have a multiple of this many columns. A job sets what its layout and precision need."""

    epoch: int | None = None
    """Training samples in one pass over the data; None if the objective has no epochs."""

    drops: Mapping[str, int] = MappingProxyType({})
    """Number of unusable training rows by reason."""

    @abstractmethod
    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        """Training sample `index`, for any index >= 0. Every epoch has a different order, determined by the seed."""

    def width(self, index: int) -> int:
        """Columns of training sample `index` that matter; asked only of objectives whose rows are `padded`."""
        return 0

    def expect(self, samples: Sequence[int]) -> None:  # noqa: B027
        """Fetch training samples that are about to be read, many at once, if this machine does not have them."""

    @abstractmethod
    def heldout(self, index: int) -> Mapping[str, np.ndarray] | None:
        """Held-out sample `index`; None past the last."""

    @abstractmethod
    def collate(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
        """tokens, labels, position_ids [b, s] int64; loss_mask [b, s] float32; and whatever else `loss` needs.

        For rows of several texts also segments [b, s], the text that each token belongs to.
        """

    @abstractmethod
    def loss(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Compute (loss sum, count, sums to report) from the model output, local to the rank.

        The count depends only on the batch, never on the output.
        """

    def count(self, batch: Batch) -> Tensor:
        """The count that `loss` returns for a batch, an integer, available on every pipeline stage."""
        return batch["loss_mask"].sum()

    def enrich(self, batches: Sequence[Batch]) -> None:  # noqa: B027
        """Add other models' outputs to this rank's micro-batches before they are used. Called on every rank."""

    def report(self, means: dict[str, float]) -> dict[str, float]:
        """Turn the means of the loss and the sums into the metrics to report; by default all of them."""
        return means

    def prepare(self, forward: Forward) -> None:  # noqa: B027 - most have nothing to compute beforehand
        """Called once per start, with the initial weights, before a checkpoint is loaded. Cache slow computations in
        the job's folder with `inputs.computed_once`."""
