"""The seam between data and the training loop: samples by index, a batch, a loss."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar

import numpy as np
from torch import Tensor

from cupola_trainer.data.batches import Batch
from cupola_trainer.forward.schedule import Reads

Forward = Callable[[Batch], Tensor]
"""From a collated batch to what the objective reads [b, s], without gradient;
every rank calls it with the same batches."""


class Objective(ABC):
    """What a model is trained for. Samples, collation and loss are an objective's own; the rest has a default.

    An objective has no state that changes while it trains: a resumed job builds it anew. One that does is an
    `online.OnlineObjective`.
    """

    name: str

    reads: ClassVar[Reads] = "token_losses"
    """What the model gives to `loss`.

    "token_losses": [b, s], -log p(labels), in fp32; no rank ever holds all logits.
    "values": [b, s], a scalar head's output at each token, in fp32. The model's head must be "scalar".
    "logits": [b, s, v / tp], this tensor-parallel rank's part of the vocabulary, after soft-capping.
    """

    epoch: int | None = None
    """Training samples in one pass over the data; none where nothing counts them."""

    drops: Mapping[str, int] = MappingProxyType({})
    """Training rows that cannot be used, by reason."""

    @abstractmethod
    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        """Training sample `index`, any index from 0 on: every epoch is in an order of its own, decided by the seed."""

    @abstractmethod
    def heldout(self, index: int) -> Mapping[str, np.ndarray] | None:
        """Held-out sample `index`; None past the last."""

    @abstractmethod
    def collate(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
        """tokens, labels, position_ids [b, s] int64; loss_mask [b, s] float32; and what `loss` needs besides.

        Where rows are packed also attention_mask [b, 1, s, s], true where a query must not see a key.
        """

    @abstractmethod
    def loss(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """From what the objective reads to (sum, count, sums to report), local to the rank.

        The count depends on the batch only, never on the output.
        """

    def count(self, batch: Batch) -> Tensor:
        """The count that `loss` gives for a batch, a whole number, known on every pipeline stage."""
        return batch["loss_mask"].sum()

    def enrich(self, batches: Sequence[Batch]) -> None:  # noqa: B027
        """Add to this rank's micro-batches what other models give for them. Every rank calls it,
        before they are read."""

    def report(self, means: dict[str, float]) -> dict[str, float]:
        """What to report of a batch's means of the loss and of the sums: by default all of them."""
        return means

    def prepare(self, forward: Forward) -> None:  # noqa: B027 - most have nothing to compute beforehand
        """Called once a start, with the initial weights, before a checkpoint is loaded. What takes long is kept in the
        job's folder by `inputs.computed_once`."""
