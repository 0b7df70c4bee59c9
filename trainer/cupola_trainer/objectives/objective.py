"""The seam between data and the training loop: samples by index, a batch, a loss."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from cupola_trainer.architecture import ModelConfig

if TYPE_CHECKING:
    from cupola_trainer.checkpoint import Progress
    from cupola_trainer.optim import Trainee

Batch = dict[str, Tensor]
Forward = Callable[[Batch], Tensor]
"""From a collated batch to what the objective reads [b, s], without gradient; every rank calls it with the same batches."""
Reads = Literal["token_losses", "values", "logits"]


class Objective(ABC):
    """What a model is trained for. Only samples, collation and loss are an objective's own; the rest has a default."""

    name: str

    reads: ClassVar[Reads] = "token_losses"
    """What the model gives to `loss`.

    "token_losses": [b, s], -log p(labels), in fp32; no rank ever holds all logits.
    "values": [b, s], what a scalar head says after each token, in fp32. The model's head must be "scalar".
    "logits": [b, s, v / tp], this tensor-parallel rank's part of the vocabulary, after soft-capping.
    """

    epoch: int | None = None
    """Training samples in one pass over the data; none where nothing counts them."""

    drops: Mapping[str, int] = MappingProxyType({})
    """Training rows that cannot be learnt from, by reason."""

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
        """Put into this rank's micro-batches what other models say of them. Every rank calls it, before they are read."""

    def report(self, means: dict[str, float]) -> dict[str, float]:
        """What to tell of a batch's means of the loss and of the sums to report: all of them, if not said otherwise."""
        return means

    def prepare(self, forward: Forward) -> None:  # noqa: B027 - most have nothing to compute beforehand
        """Called once, with the initial weights, before the first step."""

    def state(self) -> dict[str, np.ndarray]:
        """What `prepare` found, to be kept with the job: a resumed one has other weights. Empty where there is nothing."""
        return {}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:  # noqa: B027
        """Take `state` back in place of `prepare`."""

    # of objectives whose samples are the model's own answers

    def attach(self, trainee: "Trainee", model: ModelConfig) -> None:  # noqa: B027
        """Called once a start with the model in training, before `prepare` or `restore`."""

    def resume(self, progress: "Progress") -> None:  # noqa: B027
        """The job is at `progress`: at a start, from step 0 or a checkpoint, and after a rollback. Every rank calls it."""

    def gather(self, sample: int) -> dict[str, float]:
        """Make what the step that begins with this sample reads, unless it is there. Returns what to report of it."""
        return {}

    def beside(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Train what is trained beside the model, on the step's micro-batches. Returns what to report."""
        return {}

    def update(self, trainee: "Trainee") -> tuple[float, bool]:
        """Let the model take its step: `Trainee.update`."""
        return trainee.update()

    def save(self, progress: "Progress") -> None:  # noqa: B027
        """A checkpoint of this moment is about to be written: keep what goes with it. Every rank calls it."""

    def running(self) -> dict[str, Any]:
        """What a checkpoint's training.json keeps for `resume`, as "objective_state"; plain JSON."""
        return {}

    def measure(self) -> dict[str, float]:
        """Means to report as held-out ones, besides those of held-out samples."""
        return {}
