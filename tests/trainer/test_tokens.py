"""Packed sequences: decided by the seed, every epoch in an order of its own, sources in the weights asked for."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cupola_platform.errors import ConfigError, SourceError
from cupola_trainer import runtime
from cupola_trainer.config import NextTokenData, ParallelConfig
from cupola_trainer.data.tokens import build

LENGTH = 64


@pytest.fixture(autouse=True, scope="module")
def _process_group() -> None:
    runtime.start(ParallelConfig(), seed=0)


def read(data: NextTokenData, cache: Path, *, samples: int = 40, seed: int = 1) -> tuple[list[np.ndarray], Any]:
    train, heldout = build(data, sequence_length=LENGTH, samples=samples, seed=seed, cache=cache)
    return [train[i]["tokens"].numpy() for i in range(samples)], heldout


def test_the_seed_decides_and_another_seed_decides_otherwise(tokens_folder: Path, tmp_path: Path) -> None:
    data = NextTokenData(tokens=tokens_folder)
    first, again, other = (read(data, tmp_path / name, seed=seed)[0] for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert all(np.array_equal(x, y) for x, y in zip(first, again, strict=True))
    assert not all(np.array_equal(x, y) for x, y in zip(first, other, strict=True))


def test_labels_are_the_next_tokens_and_every_one_counts(tokens_folder: Path, tmp_path: Path) -> None:
    train, _ = build(NextTokenData(tokens=tokens_folder), sequence_length=LENGTH, samples=4, seed=1, cache=tmp_path)
    item = train[0]
    assert item["tokens"].shape == (64,)
    assert item["tokens"][1:].tolist() == item["labels"][:-1].tolist()
    assert item["loss_mask"].sum() == 64
    assert item["position_ids"].tolist() == list(range(64))


def test_more_samples_than_an_epoch_holds_are_read_in_a_new_order(tokens_folder: Path, tmp_path: Path) -> None:
    data = NextTokenData(tokens=tokens_folder, weights={"code": 1.0, "email": 0.0})
    tokens = json.loads((tokens_folder / "index.json").read_text())["sources"]["code"]["train"]["tokens"]
    epoch = tokens // LENGTH
    samples, _ = read(data, tmp_path, samples=2 * epoch)
    first, second = samples[:epoch], samples[epoch:]
    assert len({sample.tobytes() for sample in first}) > 0.95 * epoch  # the same text hardly comes twice in an epoch
    assert not all(np.array_equal(x, y) for x, y in zip(first, second, strict=True))


def test_a_weight_of_zero_leaves_a_source_out_and_weights_set_the_shares(tokens_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "two"
    shutil.copytree(tokens_folder, folder)
    train, _ = build(
        NextTokenData(tokens=folder, weights={"code": 3.0, "email": 1.0}),
        sequence_length=LENGTH, samples=200, seed=1, cache=tmp_path / "cache",
    )  # fmt: skip
    assert np.bincount(train.dataset_index[:200], minlength=2).tolist() == [150, 50]


def test_heldout_samples_are_one_epoch_of_the_heldout_shards(tokens_folder: Path, tmp_path: Path) -> None:
    sources = json.loads((tokens_folder / "index.json").read_text())["sources"]
    _, heldout = read(NextTokenData(tokens=tokens_folder), tmp_path)
    assert len(heldout) == sum((counts["heldout"]["tokens"] - 1) // LENGTH for counts in sources.values())


def test_an_unknown_source_in_the_weights_is_refused(tokens_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"weights name 'web', which is no source of .* \['code', 'email'\]"):
        read(NextTokenData(tokens=tokens_folder, weights={"web": 1.0}), tmp_path)


def test_a_folder_without_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"is not a tokens artifact: its index.json cannot be read"):
        read(NextTokenData(tokens=tmp_path), tmp_path)


def test_sequences_longer_than_the_corpus_are_refused(tokens_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no training source with more than 1000000 tokens"):
        build(NextTokenData(tokens=tokens_folder), sequence_length=1_000_000, samples=1, seed=1, cache=tmp_path)
