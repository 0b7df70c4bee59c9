"""What a model is trained for: samples by index, a batch, a loss. One file an objective."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

Batch = dict[str, Tensor]
Forward = Callable[[Batch], Tensor]
"""From a collated batch to its token losses [b, s], without gradient; every rank calls it with the same batches."""


class Objective(Protocol):
    """The seam between data and the training loop."""

    name: str

    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        """Training sample `index`, any index from 0 on: every epoch is in an order of its own, decided by the seed."""
        ...

    def heldout(self, index: int) -> Mapping[str, np.ndarray] | None:
        """Held-out sample `index`; None past the last."""
        ...

    def collate(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
        """tokens, labels, position_ids [b, s] int64; loss_mask [b, s] float32; and what `loss` needs besides."""
        ...

    def loss(self, token_losses: Tensor, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """From token losses [b, s] = -log p(labels) to (sum, count, sums to report), local to the rank.

        The count depends on the batch only, never on the losses.
        """
        ...

    def prepare(self, forward: Forward) -> None:
        """Called once, with the initial weights, before the first step."""
        ...
