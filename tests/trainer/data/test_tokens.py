"""Packed rows: determined by the seed, every token once an epoch, with the configured source weights."""

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cupola_platform.corpus.tokenizer.shards import ShardWriter
from cupola_platform.errors import ConfigError, CorruptArtifactError, SourceError
from cupola_trainer import runtime
from cupola_trainer.config import BatchConfig, LayoutConfig, NextTokenData
from cupola_trainer.data.pretraining.rows import Blend
from cupola_trainer.data.pretraining.shuffling import shuffled
from cupola_trainer.data.pretraining.tokens import build
from cupola_trainer.objectives.next_token import NextTokenObjective

LENGTH = 64


@pytest.fixture(autouse=True, scope="module")
def _process_group() -> None:
    runtime.start(LayoutConfig(), seed=0)


def train(tokens: Path, *, seed: int = 1, weights: dict[str, float] | None = None) -> Blend:
    return build(NextTokenData(tokens=tokens, weights=weights), sequence_length=LENGTH, seed=seed)[0]


def tokens_of(folder: Path, source: str) -> np.ndarray:
    return np.fromfile(folder / "shards" / f"train-{source}.bin", np.uint16)


def numbered(folder: Path, sizes: dict[str, list[int]], max_bytes: int | None = None) -> Path:
    """A `tokens` artifact whose tokens count up from 0 through all sources, in documents of these sizes."""
    (folder / "shards").mkdir(parents=True)
    first, sources = 0, {}
    for name, lengths in sizes.items():
        with ShardWriter(folder / "shards" / f"train-{name}", "int32", max_bytes) as shard:
            for length in lengths:
                shard.add(np.arange(first, first + length, dtype=np.int32))
                first += length
        sources[name] = {"train": {"documents": shard.documents, "tokens": shard.tokens, "files": shard.names}}
    (folder / "index.json").write_text(json.dumps({"vocab_size": first, "sources": sources}))
    return folder


def test_the_seed_determines_the_order_and_another_seed_changes_it(tokens_folder: Path) -> None:
    first, again, other = ([train(tokens_folder, seed=seed)[i].tolist() for i in range(40)] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_labels_are_the_next_tokens_and_every_one_counts(tokens_folder: Path) -> None:
    objective = NextTokenObjective(NextTokenData(tokens=tokens_folder), batch=BatchConfig(sequence_length=64), seed=1)
    for item in (objective.sample(0), objective.heldout(0)):
        assert item is not None
        assert item["tokens"].shape == (64,)
        assert item["tokens"][1:].tolist() == item["labels"][:-1].tolist()
        assert item["loss_mask"].sum() == 64
        assert item["position_ids"].tolist() == list(range(64))


def test_an_epoch_has_every_token_once_and_the_next_one_has_other_rows_in_another_order(tmp_path: Path) -> None:
    rows = train(numbered(tmp_path, {"web": [100, 1, 900, 63, 41, 7]}))
    assert rows.epoch == (1112 - 1) // 64 == 17
    epochs = [[rows[index] for index in range(first, first + 17)] for first in (0, 17)]
    for epoch in epochs:
        assert all(np.array_equal(np.diff(row) % 1112, np.ones(64)) for row in epoch), (
            "the end goes on at the beginning"
        )
        read = np.concatenate([row[:-1] for row in epoch])
        assert len(set(read.tolist())) == 17 * 64
    assert {row[0] for row in epochs[0]} & {row[0] for row in epochs[1]} == set(), "rows begin elsewhere"


def test_a_row_is_the_same_whatever_was_read_before(tokens_folder: Path) -> None:
    far = train(tokens_folder)[10**12]
    rows = train(tokens_folder)
    for index in range(100):
        assert len(rows[index]) == LENGTH + 1
    assert rows[10**12].tolist() == far.tolist()


def test_several_files_of_a_source_are_read_like_one(tmp_path: Path) -> None:
    lengths = np.random.default_rng(0).integers(1, 300, 40).tolist()
    one = train(numbered(tmp_path / "one", {"web": lengths, "code": [500, 20]}))
    folder = numbered(tmp_path / "several", {"web": lengths, "code": [500, 20]}, max_bytes=2000)
    several = train(folder)
    files = json.loads((folder / "index.json").read_text())["sources"]["web"]["train"]["files"]
    assert len(files) > 10
    assert files[:2] == ["train-web", "train-web.00001"]
    assert all((folder / "shards" / f"{name}.bin").stat().st_size <= 2000 for name in files)
    assert (tmp_path / "one" / "shards" / "train-web.bin").read_bytes() == b"".join(
        (folder / "shards" / f"{name}.bin").read_bytes() for name in files
    )
    for index in range(3 * one.epoch):
        assert one[index].tolist() == several[index].tolist()


def test_a_weight_of_zero_leaves_a_source_out_and_weights_set_the_shares(tokens_folder: Path) -> None:
    rows = train(tokens_folder, weights={"code": 3.0, "email": 1.0})
    assert [Counter(rows.place(index)[0] for index in range(count))[0] for count in (4, 8, 200)] == [3, 6, 150]
    assert [source.stream.name for source in rows.sources] == ["train-code", "train-email"]
    only = train(tokens_folder, weights={"code": 1.0, "email": 0.0})
    code = tokens_of(tokens_folder, "code")
    assert [source.stream.name for source in only.sources] == ["train-code"]
    windows = np.lib.stride_tricks.sliding_window_view(code, LENGTH + 1)
    assert (windows == only[3]).all(axis=1).any()


@pytest.mark.parametrize(
    "weights", [[1.0], [0.3, 0.7], [1, 1, 1], [5, 1e-9, 2], [3 * 10**11, 7 * 10**11, 12_345], [1.0] * 40]
)
def test_interleaved_sources_have_their_shares_at_any_time_and_none_of_their_rows_is_left_out(
    weights: list[float],
) -> None:
    rows = Blend([None] * len(weights), weights)  # type: ignore[list-item]
    seen = [0] * len(weights)
    shares = np.array(weights) / sum(weights)
    for index in range(3000):
        source, number = rows.place(index)
        assert number == seen[source]
        seen[source] += 1
        if index % 100 == 99:
            assert np.abs(np.array(seen) - shares * (index + 1)).max() <= 1 + len(weights) / 2
    far = 10**11 + 5
    counts = Counter(rows.place(far + index)[0] for index in range(1000))
    assert max(abs(counts[source] - 1000 * share) for source, share in enumerate(shares)) <= 1 + len(weights) / 2
    before = [rows.place(far + index) for index in range(1000)]
    for source in range(len(weights)):
        numbers = [number for which, number in before if which == source]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_a_shuffled_epoch_is_a_permutation_of_its_rows(size: int) -> None:
    assert sorted(shuffled(index, size, (1, 2)) for index in range(size)) == list(range(size))


def test_a_shuffle_puts_every_row_everywhere_equally_often() -> None:
    """Pearson's chi-squared over positions and over the distance of neighbours, against its 99.9th percentile."""
    size, seeds = 20, 4000
    places = np.array([[shuffled(index, size, (seed,)) for index in range(size)] for seed in range(seeds)])
    counts = np.stack([np.bincount(places[:, index], minlength=size) for index in range(size)])
    expected = seeds / size
    assert ((counts - expected) ** 2 / expected).sum() < 449  # of (20 - 1)^2 = 361 degrees of freedom
    steps = np.bincount((places[:, 1] - places[:, 0]) % size, minlength=size)[1:]
    assert ((steps - seeds / 19) ** 2 / (seeds / 19)).sum() < 42.3  # of 18


def test_heldout_rows_are_one_epoch_of_the_heldout_shards(tokens_folder: Path) -> None:
    sources = json.loads((tokens_folder / "index.json").read_text())["sources"]
    objective = NextTokenObjective(NextTokenData(tokens=tokens_folder), batch=BatchConfig(sequence_length=64), seed=1)
    rows = sum((counts["heldout"]["tokens"] - 1) // LENGTH for counts in sources.values())
    read = [objective.heldout(index) for index in range(rows)]
    assert len({row["tokens"].tobytes() for row in read if row}) > 0.95 * rows
    assert objective.heldout(rows) is None


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 4)


def recount(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    index["sources"]["web"]["train"]["tokens"] += 1
    (folder / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            lambda folder: (folder / "shards/train-web.00001.bin").unlink(),
            r"train-web\.00001\.bin is missing\. Make or",
        ),
        (
            lambda folder: (folder / "shards/train-web.00002.idx").unlink(),
            r"train-web\.00002\.idx is missing\. Make or",
        ),
        (
            lambda folder: cut(folder / "shards/train-web.00001.bin"),
            r"00001\.bin has 1,596 bytes, .* 400 tokens of 4 byte",
        ),
        (lambda folder: cut(folder / "shards/train-web.00001.idx"), r"00001\.idx is truncated or not an index"),
        (recount, r"index\.json counts 1,201 tokens of train-web, but its 3 shards hold 1,200\. Make or fetch"),
    ],
)
def test_a_missing_or_truncated_file_or_another_count_is_refused_in_one_line(
    spoil: Callable[[Path], None], says: str, tmp_path: Path
) -> None:
    folder = numbered(tmp_path, {"web": [400, 400, 400]}, max_bytes=1600)
    spoil(folder)
    with pytest.raises(CorruptArtifactError, match=says):
        train(folder)


def test_a_file_that_is_truncated_while_it_is_read_is_an_error_and_not_a_signal(tmp_path: Path) -> None:
    rows = train(numbered(tmp_path, {"web": [400, 400]}))
    os.truncate(tmp_path / "shards" / "train-web.bin", 0)
    with pytest.raises(CorruptArtifactError, match=r"train-web\.bin was truncated\. Make or fetch the artifact again"):
        rows[0]


def test_an_unknown_source_in_the_weights_is_refused(tokens_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"weights name 'web', which is not a source of .* \['code', 'email'\]"):
        train(tokens_folder, weights={"web": 1.0})


def test_a_folder_without_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"is not a tokens artifact: its index.json cannot be read"):
        train(tmp_path)


def test_sequences_longer_than_the_corpus_are_refused(tokens_folder: Path) -> None:
    with pytest.raises(SourceError, match="no training source with more than 1000000 tokens"):
        build(NextTokenData(tokens=tokens_folder), sequence_length=1_000_000, seed=1)


def test_documents_in_one_row_are_trained_on_as_if_each_were_alone(tokens_folder: Path) -> None:
    import torch

    from cupola_trainer import models
    from cupola_trainer.config import ModelConfig
    from cupola_trainer.forward.outputs import token_losses

    end, length = 256, 24
    model = ModelConfig(
        hidden_size=32, num_layers=2, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=64,
        vocab_size=320, max_position_embeddings=64,
    )  # fmt: skip
    chunks = models.build(model, LayoutConfig(), seed=5)
    documents = [[*list(b"def f(x):"), end], [*list(b"import os"), end], list(b"abcde")]

    def objective(reset: bool) -> NextTokenObjective:
        data = NextTokenData(tokens=tokens_folder, reset_at_documents=reset)
        return NextTokenObjective(data, batch=BatchConfig(sequence_length=length), seed=0)

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
