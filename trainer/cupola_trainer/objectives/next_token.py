"""Pretraining: the mean negative log-likelihood of the next token, over packed sequences."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from cupola_trainer.config import BatchConfig, NextTokenData
from cupola_trainer.data.batches import Batch
from cupola_trainer.data.pretraining import tokens
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
        CorruptArtifactError: a shard of it is missing or truncated.
    """
    return NextTokenObjective(inputs.data, batch=inputs.batch, seed=inputs.seed)


class NextTokenObjective(Objective):
    """Next-token prediction on a `tokens` artifact, split into sequences across document boundaries.

    Sequences have one length, or several by a schedule, and may contain passages to copy. Held-out sequences have the
    full length and unchanged text.
    """

    name = "next_token"

    def __init__(self, data: NextTokenData, *, batch: BatchConfig, seed: int) -> None:
        """
        Raises:
            SourceError: the artifact has too few tokens, or is not a `tokens` artifact.
            CorruptArtifactError: a shard of it is missing or truncated.
        """
        self._train, self._heldout = tokens.build(data, sequence_length=batch.sequence_length, seed=seed)
        self._end = tokens.end_of_document(data) if data.reset_at_documents else None
        self._lengths = Lengths(data.lengths, batch, seed) if data.lengths else None
        self._copying = (
            Copying(data.copying, self._vocabulary(tokens.end_of_document(data)), seed) if data.copying else None
        )

    def _vocabulary(self, end_of_document: int) -> np.ndarray:
        """The distinct tokens of the first training sequences, sorted."""
        rows = min(self._train.epoch, math.ceil(WORDS_FROM / len(self._train[0])))
        text = np.concatenate([self._train[row] for row in range(rows)])
        return np.setdiff1d(text, [end_of_document])

    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        arrays = _arrays(self._train[index])
        length = self._lengths.of(index) if self._lengths else len(arrays["tokens"])
        if self._copying:
            arrays = self._copying.apply(arrays, index, length)
        return arrays | {"sequence_length": np.array(length)} if self._lengths else arrays

    def expect(self, samples: Sequence[int]) -> None:
        self._train.fetch(samples)

    def heldout(self, index: int) -> Mapping[str, np.ndarray] | None:
        return _arrays(self._heldout[index]) if self._heldout and index < self._heldout.epoch else None

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


def _arrays(row: np.ndarray) -> dict[str, np.ndarray]:
    """`FIELDS` [s] of a row [s + 1]. Every token counts."""
    length = len(row) - 1
    values = row[:-1], row[1:], np.ones(length, np.float32), np.arange(length)
    return dict(zip(FIELDS, values, strict=True))
