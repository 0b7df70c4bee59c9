"""Supervised fine-tuning: next-token loss on the assistant's tokens only."""

import random
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from cupola_trainer.checkpoint.compatibility import check_tokenizer
from cupola_trainer.config import NextTokenData, SftData
from cupola_trainer.data.batches import Batch
from cupola_trainer.data.chat import ChatTokenizer
from cupola_trainer.data.conversations import Sample, load_conversations, refuse_empty
from cupola_trainer.data.order import order
from cupola_trainer.objectives.base import Objective
from cupola_trainer.objectives.inputs import ObjectiveInputs
from cupola_trainer.objectives.next_token import NextTokenObjective
from cupola_trainer.objectives.replay import ReplayObjective

OPEN_ROWS = 64
"""Rows that packing keeps open to be filled."""


def build(inputs: ObjectiveInputs) -> Objective:
    """Build SFT on a `conversations` artifact, with pretraining text mixed in if `data.pretraining` is set.

    Raises:
        ConfigError, SourceError: there is no tokenizer, or the data are missing, malformed or too few.
    """
    data: SftData = inputs.data
    tokenizer = inputs.chat_tokenizer()
    sft = SftObjective(data, tokenizer=tokenizer, sequence_length=inputs.batch.sequence_length, seed=inputs.seed)
    return _with_replay(sft, inputs, data) if data.pretraining else sft


def _with_replay(sft: Objective, inputs: ObjectiveInputs, data: SftData) -> Objective:
    """`sft` with pretraining text mixed in."""
    assert data.pretraining
    check_tokenizer(inputs.tokenizer, data.pretraining)
    text = NextTokenObjective(NextTokenData(tokens=data.pretraining), batch=inputs.batch, seed=inputs.seed)
    return ReplayObjective(sft, text, data.pretraining_share)


class SftObjective(Objective):
    """Conversations of a `conversations` artifact. A sample is one conversation, or as many as fit if packed."""

    name = "sft"

    def __init__(self, data: SftData, *, tokenizer: ChatTokenizer, sequence_length: int, seed: int) -> None:
        """
        Raises:
            ConfigError: the folder holds no usable conversation, or a file of it is malformed.
        """
        self.sequence_length = sequence_length
        self.seed = seed
        self.packed, self.padded = data.pack, not data.pack
        train, self.drops = load_conversations(data.conversations / "train.jsonl", tokenizer, sequence_length)
        heldout, self.heldout_drops = load_conversations(
            data.conversations / "heldout.jsonl", tokenizer, sequence_length
        )
        refuse_empty(train, self.drops, data.conversations / "train.jsonl", "conversation", sequence_length)
        capacity = sequence_length + 1 if data.pack else 0
        self._train = [_join(train, row) for row in pack([len(s["tokens"]) for s in train], capacity, seed)]
        self.epoch = len(self._train)
        self._heldout = [_join(heldout, row) for row in pack([len(s["tokens"]) for s in heldout], capacity, seed)]

    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        return self._train[order(index, len(self._train), self.seed)]

    def width(self, index: int) -> int:
        return len(self.sample(index)["tokens"])

    def heldout(self, index: int) -> Mapping[str, np.ndarray] | None:
        return self._heldout[index] if index < len(self._heldout) else None

    def collate(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
        """`pad`'s tensors; if packed also "segments" [b, s], the number of each token's conversation."""
        batch = pad([(sample["tokens"], sample["mask"]) for sample in samples], self.sequence_length)
        if self.packed:
            segments = _right_padded([sample["segments"] for sample in samples], self.sequence_length + 1)
            batch["segments"] = torch.from_numpy(segments[:, :-1].copy())  # 0 for padding
        return batch

    def loss(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum over the assistant's tokens and their number."""
        return (output.float() * batch["loss_mask"]).sum(), self.count(batch), {}


def pack(lengths: Sequence[int], capacity: int, seed: int) -> list[list[int]]:
    """Group indices 0 to n - 1 into rows with total length at most `capacity`, by first fit in shuffled order.

    An item longer than `capacity` gets a row to itself.
    """
    places = list(range(len(lengths)))
    random.Random(seed).shuffle(places)
    rows: list[list[int]] = []
    room: list[int] = []
    for place in places:
        length = lengths[place]
        start = max(0, len(rows) - OPEN_ROWS)
        row = next((row for row in range(start, len(rows)) if room[row] >= length), None)
        if row is None:
            rows.append([place])
            room.append(capacity - length)
        else:
            rows[row].append(place)
            room[row] -= length
    return rows


def _join(samples: Sequence[Sample], places: Sequence[int]) -> Sample:
    """One row: "tokens", "mask" and "segments" (number of the conversation, from 1) [n]. A conversation's first token
    is never trained on, so none is predicted from another's end."""
    parts = [samples[place] for place in places]
    return {
        "tokens": np.concatenate([part["tokens"] for part in parts]),
        "mask": np.concatenate([part["mask"] for part in parts]),
        "segments": np.repeat(np.arange(1, len(parts) + 1), [len(part["tokens"]) for part in parts]),
    }


def pad(rows: Sequence[tuple[np.ndarray, np.ndarray]], sequence_length: int) -> Batch:
    """Rows of (token ids [n], loss mask [n]), n <= s + 1, as tensors [b, s], padded with token 0 outside the loss mask.

    Padding is on the right, so with causal attention no trained token sees it.
    """
    tokens = _right_padded([ids for ids, _ in rows], sequence_length + 1)
    loss_mask = _right_padded([mask for _, mask in rows], sequence_length + 1).astype(np.float32)
    return {
        "tokens": torch.from_numpy(tokens[:, :-1].copy()),
        "labels": torch.from_numpy(tokens[:, 1:].copy()),
        "loss_mask": torch.from_numpy(loss_mask[:, 1:].copy()),
        "position_ids": torch.arange(sequence_length).expand(len(rows), -1).contiguous(),
    }


def _right_padded(rows: Sequence[np.ndarray], width: int) -> np.ndarray:
    padded = np.zeros((len(rows), width), dtype=np.int64)
    for row, values in enumerate(rows):
        padded[row, : len(values)] = values
    return padded
