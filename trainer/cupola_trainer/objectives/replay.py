"""Replay: fine-tuning with some pretraining text, against forgetting."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from cupola_trainer.data.batches import Batch
from cupola_trainer.objectives.base import Objective

Row = Mapping[str, np.ndarray]


class ReplayObjective(Objective):
    """SFT in which a `share` of all rows are pretraining sequences. The loss is the mean over all trained tokens: the
    assistant's in conversations, all in text. Held-out rows are mixed the same way."""

    name = "sft"

    def __init__(self, sft: Objective, text: Objective, share: float) -> None:
        """
        Args:
            sft: an `SftObjective`.
            text: next-token sequences of the same length as `sft`'s.
            share: share of text in all rows, between 0 and 1 (exclusive).
        """
        self.sft, self.text, self.share = sft, text, share
        self.drops, self.padded = sft.drops, sft.padded
        self.epoch = rows_with_text(sft.epoch or 0, share)

    def sample(self, index: int) -> Row:
        row = self._mixed(index, self.sft.sample, self.text.sample)
        assert row is not None
        return row

    def width(self, index: int) -> int:
        return len(self.sample(index)["tokens"])

    def heldout(self, index: int) -> Row | None:
        """None where either conversations or text have run out."""
        return self._mixed(index, self.sft.heldout, self.text.heldout)

    def _mixed(self, index: int, sft: Callable[[int], Row | None], text: Callable[[int], Row | None]) -> Row | None:
        before = text_rows(index, self.share)
        if text_rows(index + 1, self.share) == before:
            row = sft(index - before)
            return row and {**row, "pretraining": np.zeros(1, dtype=np.float32)}
        sequence = text(before)
        return sequence and {**as_conversation(sequence), "pretraining": np.ones(1, dtype=np.float32)}

    def collate(self, samples: Sequence[Row]) -> Batch:
        """`SftObjective.collate`'s tensors plus "pretraining" [b, s], 1 for each trained token of text."""
        batch = self.sft.collate(samples)
        of_text = torch.from_numpy(np.stack([sample["pretraining"] for sample in samples]))  # [b, 1]
        return {**batch, "pretraining": batch["loss_mask"] * of_text}

    def loss(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum over all trained tokens, their number, and the sum and number of those in text."""
        total, count, sums = self.sft.loss(output, batch)
        text = {
            "pretraining": (output.detach().float() * batch["pretraining"]).sum(),
            "pretraining_tokens": batch["pretraining"].sum(),
        }
        return total, count, sums | text

    def report(self, means: dict[str, float]) -> dict[str, float]:
        """The loss, plus "response_loss" and "pretraining_loss", each the mean over its own tokens, if any."""
        share, text = means.pop("pretraining_tokens"), means.pop("pretraining")
        parts = {"response_loss": (means["loss"] - text) / (1 - share)} if share < 1 else {}
        return means | parts | ({"pretraining_loss": text / share} if share else {})


def text_rows(rows: int, share: float) -> int:
    """Number of text rows among the first `rows`, spread evenly so that every step has nearly the same number."""
    return math.floor(rows * share)


def rows_with_text(conversations: int, share: float) -> int:
    """Total rows needed for `conversations` rows of conversations plus their share of text."""
    return math.ceil(conversations / (1 - share))


def as_conversation(sequence: Row) -> dict[str, np.ndarray]:
    """A next-token sequence [s] as a row of SFT [s + 1]: one segment, all but its first token trained on."""
    tokens = np.concatenate([sequence["tokens"], sequence["labels"][-1:]])
    return {
        "tokens": tokens,
        "mask": np.concatenate([[False], sequence["loss_mask"] > 0]),
        "segments": np.ones(len(tokens), dtype=np.int64),
    }
