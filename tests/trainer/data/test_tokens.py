"""Packed sequences: determined by the seed, reshuffled each epoch, with the configured source weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cupola_platform.errors import ConfigError, SourceError
from cupola_trainer import runtime
from cupola_trainer.config import BatchConfig, LayoutConfig, NextTokenData
from cupola_trainer.data.pretraining.tokens import build

LENGTH = 64


@pytest.fixture(autouse=True, scope="module")
def _process_group() -> None:
    runtime.start(LayoutConfig(), seed=0)


def read(data: NextTokenData, cache: Path, *, samples: int = 40, seed: int = 1) -> tuple[list[np.ndarray], Any]:
    train, heldout = build(data, sequence_length=LENGTH, samples=samples, seed=seed, cache=cache)
    return [train[i]["tokens"].numpy() for i in range(samples)], heldout


def test_the_seed_determines_the_order_and_another_seed_changes_it(tokens_folder: Path, tmp_path: Path) -> None:
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
    assert len({sample.tobytes() for sample in first}) > 0.95 * epoch  # text rarely repeats within an epoch
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
    with pytest.raises(ConfigError, match=r"weights name 'web', which is not a source of .* \['code', 'email'\]"):
        read(NextTokenData(tokens=tokens_folder, weights={"web": 1.0}), tmp_path)


def test_a_folder_without_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"is not a tokens artifact: its index.json cannot be read"):
        read(NextTokenData(tokens=tmp_path), tmp_path)


def test_sequences_longer_than_the_corpus_are_refused(tokens_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no training source with more than 1000000 tokens"):
        build(NextTokenData(tokens=tokens_folder), sequence_length=1_000_000, samples=1, seed=1, cache=tmp_path)


def test_documents_in_one_row_are_trained_on_as_if_each_were_alone(tokens_folder: Path, tmp_path: Path) -> None:
    import torch

    from cupola_trainer import models
    from cupola_trainer.config import ModelConfig
    from cupola_trainer.forward.outputs import token_losses
    from cupola_trainer.objectives.next_token import NextTokenObjective

    end, length = 256, 24
    model = ModelConfig(
        hidden_size=32, num_layers=2, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=64,
        vocab_size=320, max_position_embeddings=64,
    )  # fmt: skip
    chunks = models.build(model, LayoutConfig(), seed=5)
    documents = [[*list(b"def f(x):"), end], [*list(b"import os"), end], list(b"abcde")]

    def objective(reset: bool) -> NextTokenObjective:
        data = NextTokenData(tokens=tokens_folder, reset_at_documents=reset)
        return NextTokenObjective(
            data, batch=BatchConfig(sequence_length=length), samples=1, seed=0, cache=tmp_path / str(reset)
        )

    def total(chosen: NextTokenObjective, stream: list[int]) -> tuple[float, float]:
        padded = np.array(stream + [0] * (length + 1 - len(stream)))
        counts = (np.arange(length) < len(stream) - 1).astype(np.float32)
        sample = {
            "tokens": padded[:-1],
            "labels": padded[1:],
            "loss_mask": counts,
            "position_ids": np.arange(length),
        }
        batch = chosen.collate([sample])
        with torch.no_grad():
            losses = token_losses(chunks, batch)
        return float((losses * batch["loss_mask"]).sum()), float(batch["loss_mask"].sum())

    row = [token for document in documents for token in document]
    alone = [total(objective(False), document) for document in documents]
    packed_loss, packed_count = total(objective(True), row)
    assert packed_count == sum(count for _, count in alone) == len(row) - len(documents)
    assert packed_loss == pytest.approx(sum(loss for loss, _ in alone), abs=1e-5 * packed_count)
    across_loss, across_count = total(objective(False), row)
    assert across_count == packed_count + 2
    assert abs(across_loss - packed_loss) > 0.1


def test_resetting_at_documents_needs_an_end_of_document_token(tokens_folder: Path, tmp_path: Path) -> None:
    from cupola_trainer.data.pretraining.tokens import end_of_document

    index = json.loads((tokens_folder / "index.json").read_text())
    del index["end_of_document"]
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match="names no end_of_document"):
        end_of_document(NextTokenData(tokens=tmp_path, reset_at_documents=True))
