"""What a model is trained for: samples by index, a batch, a loss. One file an objective."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from cupola_platform.errors import ConfigError
from cupola_trainer.config import NextTokenData, SftData, TrainJob

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
        """tokens, labels, position_ids [b, s] int64; loss_mask [b, s] float32; and what `loss` needs besides.

        Where rows are packed also attention_mask [b, 1, s, s], true where a query must not see a key.
        """
        ...

    def loss(self, token_losses: Tensor, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """From token losses [b, s] = -log p(labels) to (sum, count, sums to report), local to the rank.

        The count depends on the batch only, never on the losses.
        """
        ...

    def prepare(self, forward: Forward) -> None:
        """Called once, with the initial weights, before the first step."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """What `prepare` found, to be kept with the job: a resumed one has other weights. Empty where there is nothing."""
        ...

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take `state` back in place of `prepare`."""
        ...


def build_objective(job: TrainJob, tokenizer: Path | None) -> Objective:
    """The job's objective over its data; `tokenizer` is the model's tokenizer folder. `runtime.start` comes first.

    Raises:
        ConfigError, SourceError: the data are missing, malformed or too few.
    """
    length = job.batch.sequence_length
    if isinstance(job.data, NextTokenData):
        from cupola_trainer.objectives.next_token import NextTokenObjective

        samples = job.steps * job.batch.global_batch_size
        cache = job.output / "index"
        return NextTokenObjective(job.data, batch=job.batch, samples=samples, seed=job.seed, cache=cache)
    if tokenizer is None:
        raise ConfigError(
            f"the objective {job.data.objective} needs a tokenizer: name its folder, or an initial checkpoint."
        )
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    if isinstance(job.data, SftData):
        from cupola_trainer.objectives.sft import SftObjective

        data = replace(job.data, pack=job.data.pack and job.parallel.cp == 1)  # attention over cp ranks takes no mask
        return SftObjective(data, tokenizer=loaded, sequence_length=length, seed=job.seed)
    from cupola_trainer.objectives.dpo import DpoObjective

    pairs = job.batch.micro_batch_size
    return DpoObjective(job.data, tokenizer=loaded, sequence_length=length, pairs_per_pass=pairs, seed=job.seed)
