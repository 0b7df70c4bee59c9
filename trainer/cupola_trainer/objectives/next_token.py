"""Pretraining: the mean negative log-likelihood of the next token, over packed sequences."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cupola_trainer.config import BatchConfig, NextTokenData
from cupola_trainer.data.batches import Batch
from cupola_trainer.data.pretraining import shards, tokens
from cupola_trainer.data.pretraining.copying import Copying
from cupola_trainer.data.pretraining.lengths import Lengths, cut
from cupola_trainer.data.pretraining.packing import document_segments
from cupola_trainer.objectives.base import Objective
from cupola_trainer.objectives.inputs import ObjectiveInputs

WORDS_FROM = 1 << 17
"""Training tokens searched for the vocabulary of copying passages."""
FIELDS = ("tokens", "labels", "loss_mask", "position_ids")


def build(inputs: ObjectiveInputs) -> Objective:
    """Build next-token training on a `tokens` artifact.

    Raises:
        SourceError: the artifact has too few tokens, or is not a `tokens` artifact.
    """
    return text(inputs, inputs.data, inputs.samples)


def text(inputs: ObjectiveInputs, data: NextTokenData, samples: int) -> "NextTokenObjective":
    """Sequences of a `tokens` artifact, as a job's objective or as part of another one."""
    return NextTokenObjective(
        data, batch=inputs.batch, samples=samples, seed=inputs.seed, cache=inputs.output / "index"
    )


class NextTokenObjective(Objective):
    """Next-token prediction on a `tokens` artifact, split into sequences across document boundaries.

    Sequences have one length, or several by a schedule, and may contain passages to copy. Held-out sequences have the
    full length and unchanged text.
    """

    name = "next_token"

    def __init__(self, data: NextTokenData, *, batch: BatchConfig, samples: int, seed: int, cache: Path) -> None:
        """
        Raises:
            SourceError: the artifact has too few tokens, or is not a `tokens` artifact.
        """
        self._train, self._heldout = tokens.build(
            data, sequence_length=batch.sequence_length, samples=samples, seed=seed, cache=cache
        )
        self._fetching = ThreadPoolExecutor(1) if shards.is_partly(self._train) else None
        self._fetch: Future[None] | None = None
        self._end = tokens.end_of_document(data) if data.reset_at_documents else None
        self._lengths = Lengths(data.lengths, batch, seed) if data.lengths else None
        self._copying = (
            Copying(data.copying, self._vocabulary(tokens.end_of_document(data)), seed) if data.copying else None
        )

    def _vocabulary(self, end_of_document: int) -> np.ndarray:
        """The distinct tokens of the first training sequences, sorted."""
        rows = min(len(self._train), math.ceil(WORDS_FROM / len(self._train[0]["tokens"])))
        text = np.concatenate([self._train[row]["tokens"].numpy() for row in range(rows)])
        return np.setdiff1d(text, [end_of_document])

    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        arrays = _arrays(self._train[index % len(self._train)])  # exceeds the length only after a rollback
        length = self._lengths.of(index) if self._lengths else len(arrays["tokens"])
        if self._copying:
            arrays = self._copying.apply(arrays, index, length)
        return arrays | {"sequence_length": np.array(length)} if self._lengths else arrays

    def expect(self, samples: Sequence[int]) -> None:
        if self._fetching and (self._fetch is None or self._fetch.done()):
            rows = [index % len(self._train) for index in samples]
            self._fetch = self._fetching.submit(shards.fetch, self._train, rows)

    def heldout(self, index: int) -> Mapping[str, np.ndarray] | None:
        return _arrays(self._heldout[index]) if index < len(self._heldout) else None

    def collate(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
        """With `reset_at_documents`, no token attends to another document or is predicted from its end."""
        batch = {name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in FIELDS}
        if "sequence_length" in samples[0]:
            batch = cut(batch, int(samples[0]["sequence_length"]))
        if self._end is not None:
            segments, ends = document_segments(batch["tokens"], self._end)
            batch["segments"] = segments
            batch["loss_mask"] = batch["loss_mask"].masked_fill(ends, 0.0)
        return batch

    def loss(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        return (output.float() * batch["loss_mask"]).sum(), self.count(batch), {}


def _arrays(item: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: item[name].numpy() for name in FIELDS}
