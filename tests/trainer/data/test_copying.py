"""Repeated random pieces: the requested share, unchanged text around them, determined by the seed."""

from pathlib import Path

import numpy as np
import pytest

from cupola_platform.errors import ConfigError
from cupola_trainer import runtime
from cupola_trainer.config import (
    BatchConfig,
    CopyingConfig,
    LayoutConfig,
    LengthPhase,
    LengthSchedule,
    ModelConfig,
    NextTokenData,
)
from cupola_trainer.config.layout_rules import validate_layout
from cupola_trainer.data.pretraining.copying import Copying
from cupola_trainer.objectives.next_token import NextTokenObjective

WORDS = np.arange(1000, 1_000_000)  # enough that no piece repeats one
TEXT = {"tokens": np.arange(64), "labels": np.arange(1, 65)}
MODEL = ModelConfig(
    vocab_size=320, hidden_size=32, num_layers=2, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=64,
    max_position_embeddings=64,
)  # fmt: skip


def occurrences(sequence: np.ndarray) -> int:
    """Count the piece in a sequence, and check that everything else is unchanged text."""
    copied = sequence >= 1000
    assert (sequence[~copied] == np.flatnonzero(~copied)).all()
    first, *_ = np.flatnonzero(copied)
    places = np.flatnonzero(sequence == sequence[first])
    size = copied.sum() // len(places)
    assert 8 <= size <= len(sequence) // 3
    assert copied.sum() == size * len(places)
    assert all((sequence[place : place + size] == sequence[first : first + size]).all() for place in places)
    return len(places)


def test_a_piece_occurs_at_least_twice_and_the_text_between_is_unchanged() -> None:
    copying = Copying(CopyingConfig(share=1.0), WORDS, seed=1)
    found = []
    for index in range(300):
        row = copying.apply(TEXT, index, 64)
        assert (row["labels"][:-1] == row["tokens"][1:]).all()
        assert row["labels"][-1] == 64
        found.append(occurrences(row["tokens"]))
    assert (min(found), max(found)) == (2, 8)


def test_only_the_share_of_sequences_changes_independently_and_deterministically() -> None:
    copying = Copying(CopyingConfig(share=0.25), WORDS, seed=1)
    halves = [half for index in range(500) for half in copying.apply(TEXT, index, 32)["tokens"].reshape(2, 32)]
    changed = [bool((half >= 1000).any()) for half in halves]
    assert 0.2 < np.mean(changed) < 0.3
    again = Copying(CopyingConfig(share=0.25), WORDS, seed=1).apply(TEXT, 499, 32)["tokens"]
    assert (again == np.concatenate(halves[-2:])).all()
    assert TEXT["tokens"].tolist() == list(range(64))


def test_training_sequences_repeat_words_and_heldout_ones_are_plain_text(tokens_folder: Path) -> None:
    runtime.start(LayoutConfig(), seed=0)
    plain, copying = (
        NextTokenObjective(
            NextTokenData(tokens=tokens_folder, copying=config, lengths=lengths),
            batch=BatchConfig(sequence_length=64, global_batch_size=1), seed=3,
        )
        for config, lengths in (
            (None, None),
            (CopyingConfig(share=1.0), LengthSchedule(phases=(LengthPhase(sequence_length=64),), shortest=32)),
        )
    )  # fmt: skip
    runtime.stop()
    lengths = set()
    for index in range(40):
        text, sample = plain.sample(index), copying.sample(index)
        assert 256 not in set(sample["tokens"][sample["tokens"] != text["tokens"]])
        length = int(sample["sequence_length"])
        lengths.add(length)
        assert (sample["tokens"] != text["tokens"]).reshape(-1, length).any(axis=1).all()
        assert (copying.sample(index)["tokens"] == sample["tokens"]).all()
    assert lengths == {32, 64}
    held, text_held = copying.heldout(0), plain.heldout(0)
    assert held is not None
    assert text_held is not None
    assert (held["tokens"] == text_held["tokens"]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reset_at_documents": True}, "copying with reset_at_documents=true: .* Leave one of them out"),
        (
            {"lengths": LengthSchedule(phases=(LengthPhase(sequence_length=64),), shortest=16)},
            r"copying.shortest=8 in sequences of 16 tokens: .* Use copying.shortest=5, or longer",
        ),
    ],
)
def test_pieces_that_cannot_be_retrieved_or_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    batch = BatchConfig(sequence_length=64, micro_batch_size=1, global_batch_size=1)
    with pytest.raises(ConfigError, match=message):
        validate_layout(MODEL, LayoutConfig(), batch, copying=CopyingConfig(share=0.5), **changes)  # type: ignore[arg-type]
