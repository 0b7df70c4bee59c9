"""Token shards: readable by Megatron-Core, equal for any number of workers, and traceable from token to text."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pyarrow.parquet import read_table
from pydantic import TypeAdapter
from tokenizers import Tokenizer

from cupola_platform.corpus.config import ExecutorConfig, Files, PrepareConfig, TokenizerConfig
from cupola_platform.corpus.pipeline.preparation import prepare
from cupola_platform.corpus.tokenizer.locating import locate
from cupola_platform.corpus.tokenizer.shard_index import ShardIndex
from cupola_platform.corpus.tokenizer.shards import ShardWriter, token_dtype
from cupola_platform.errors import ConfigError, CorruptArtifactError, NotFoundError


@pytest.mark.parametrize(("vocab_size", "dtype"), [(4096, "uint16"), (151_936, "int32")])
def test_megatron_reads_the_shards(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    from megatron.core.datasets.indexed_dataset import DType, IndexedDataset

    assert token_dtype(vocab_size) == dtype == DType.optimal_dtype(vocab_size).__name__
    documents = [np.arange(length, dtype=dtype) + vocab_size - 200 for length in (5, 1, 120, 33)]
    with ShardWriter(tmp_path / "train-web", dtype) as writer:
        for document in documents:
            writer.add(document)
        assert (writer.documents, writer.tokens) == (4, 159)
    dataset = IndexedDataset(str(tmp_path / "train-web"))
    assert len(dataset) == 4
    assert dataset.sequence_lengths.tolist() == [5, 1, 120, 33]
    assert dataset.document_indices.tolist() == [0, 1, 2, 3, 4]
    for read, written in zip(dataset, documents, strict=True):
        assert read.dtype == dtype
        assert read.tolist() == written.tolist()
    assert dataset.get(2, offset=100, length=20).tolist() == documents[2][100:].tolist()


def test_joined_shards_read_as_one(tmp_path: Path) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    with ShardWriter(tmp_path / "a", "uint16") as a, ShardWriter(tmp_path / "b", "uint16") as b:
        a.add_documents(np.arange(7), np.array([3, 4]))
        b.add(np.arange(100, 105))
    with ShardWriter(tmp_path / "both", "uint16") as both:
        for part in ("a", "b"):
            both.add_shard(tmp_path / part)
        assert (both.documents, both.tokens) == (3, 12)
    dataset = IndexedDataset(str(tmp_path / "both"))
    assert [document.tolist() for document in dataset] == [[0, 1, 2], [3, 4, 5, 6], [100, 101, 102, 103, 104]]


def test_documents_that_do_not_fit_a_file_begin_the_next_one(tmp_path: Path) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    lengths = np.array([3, 4, 9, 1, 1, 20, 2, 5])
    with ShardWriter(tmp_path / "a", "int32", max_bytes=40) as several:
        several.add_documents(np.arange(45), lengths)
        several.add(np.arange(45, 50))
    with ShardWriter(tmp_path / "b", "int32") as one:
        one.add_documents(np.arange(50), np.append(lengths, 5))
    with ShardWriter(tmp_path / "c", "int32", max_bytes=40) as joined:
        joined.add_shard(tmp_path / "b")
    assert several.names == ["a", "a.00001", "a.00002", "a.00003", "a.00004", "a.00005"]
    assert (several.documents, several.tokens) == (one.documents, one.tokens) == (9, 50)
    datasets = [IndexedDataset(str(tmp_path / name)) for name in several.names]
    sizes = [[len(document) for document in dataset] for dataset in datasets]
    assert sizes == [[3, 4], [9, 1], [1], [20], [2, 5], [5]], "only a document of its own exceeds 10 tokens"
    for first, second in zip(several.names, joined.names, strict=True):
        for suffix in (".bin", ".idx"):
            assert (tmp_path / (first + suffix)).read_bytes() == (tmp_path / (second + suffix)).read_bytes()
    content = b"".join((tmp_path / f"{name}.bin").read_bytes() for name in several.names)
    assert content == (tmp_path / "b.bin").read_bytes()


def test_a_shard_shorter_than_its_index_is_not_joined(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a", "uint16") as writer:
        writer.add(np.arange(7))
    (tmp_path / "a.bin").write_bytes(b"1234")
    with (
        pytest.raises(CorruptArtifactError, match=r"a\.bin is shorter than its index says"),
        ShardWriter(tmp_path / "b", "uint16") as joined,
    ):
        joined.add_shard(tmp_path / "a")


def test_a_truncated_index_is_refused(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a", "uint16") as writer:
        writer.add_documents(np.arange(7), np.array([3, 4]))
    data = (tmp_path / "a.idx").read_bytes()
    for cut in (b"", data[:20], data[:-1], b"X" + data[1:]):
        (tmp_path / "a.idx").write_bytes(cut)
        with pytest.raises(CorruptArtifactError, match=r"is truncated or not an index of token shards"):
            ShardIndex(tmp_path / "a")


TEXTS = {
    "letters": ["Dear Ana,\nthe weather is fine today. " * n for n in range(3, 15)],
    "notes": [f"Note {n}. 今天天气很好，我们去公园散步吧。 cafe\u0301 {n * 77}. " * 5 for n in range(12)],
}


SMALL_TASKS = """
import sys
from pathlib import Path
from cupola_platform.corpus.pipeline import driver
from cupola_platform.corpus.pipeline import plan
plan.PIECE_BYTES = 300
sys.exit(driver.main(*map(Path, sys.argv[1:])))
"""


def config_of(folder: Path, workers: int) -> PrepareConfig:
    for name, texts in TEXTS.items():
        (folder / name).mkdir(exist_ok=True)
        for file in range(3):
            lines = "".join(json.dumps({"text": text}) + "\n" for text in texts[4 * file : 4 * file + 4])
            (folder / name / f"{file}.jsonl").write_text(lines)
    return PrepareConfig(
        sources={name: Files(path=str(folder / name)) for name in TEXTS},
        language=None,
        quality=None,
        deduplication=None,
        heldout_fraction=0.2,
        tokenizer=TokenizerConfig(vocab_size=320),
        executor=ExecutorConfig(workers=workers),
    )


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens prepared with one task per file."""
    folder = tmp_path_factory.mktemp("tokens")
    work = folder / "work"
    work.mkdir()
    (work / "config.json").write_bytes(TypeAdapter(PrepareConfig).dump_json(config_of(folder, 1)))
    subprocess.run([sys.executable, "-c", SMALL_TASKS, str(work), str(folder / "made")], check=True)
    assert len(list((work / "shards").glob("*.parquet"))) == 6
    return folder / "made"


def test_shards_do_not_depend_on_the_workers_or_the_tasks(tokens: Path, tmp_path: Path) -> None:
    other = tmp_path / "made"
    prepare(config_of(tmp_path, 2), other)
    names = sorted(path.name for path in (tokens / "shards").iterdir())
    assert names == sorted(path.name for path in (other / "shards").iterdir())
    assert names[:3] == ["heldout-letters.bin", "heldout-letters.blocks", "heldout-letters.idx"]
    for name in names:
        assert (tokens / "shards" / name).read_bytes() == (other / "shards" / name).read_bytes()
    columns = ["language", "split", "begin", "end", "bytes", "tokens", "document", "digest", "text"]
    assert read_table(tokens / "documents.parquet", columns=columns) == read_table(
        other / "documents.parquet", columns=columns
    )


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory, tokens: Path) -> Path:
    """The same tokens in files of 1,000 bytes at most."""
    folder = tmp_path_factory.mktemp("split")
    config = config_of(folder, 1)
    prepare(replace(config, max_shard_bytes=1000), folder / "made")
    return folder / "made"


def test_a_preparation_splits_a_source_over_files_and_its_index_lists_them(tokens: Path, split: Path) -> None:
    one, several = (json.loads((folder / "index.json").read_text())["sources"] for folder in (tokens, split))
    assert one["notes"]["train"]["files"] == ["train-notes"]
    files = several["notes"]["train"].pop("files")
    assert several["notes"]["train"] == {name: one["notes"]["train"][name] for name in ("documents", "tokens", "bytes")}
    assert files[:3] == ["train-notes", "train-notes.00001", "train-notes.00002"]
    assert (
        b"".join((split / "shards" / f"{name}.bin").read_bytes() for name in files)
        == (tokens / "shards" / "train-notes.bin").read_bytes()
    )
    assert {path.name for path in (split / "shards").glob("train-notes*")} == {
        f"{name}{suffix}" for name in files for suffix in (".bin", ".idx", ".blocks")
    }


@pytest.mark.parametrize("made", ["tokens", "split"])
def test_every_token_is_traced_to_its_document_and_position_in_the_text(
    made: str, tokens: Path, request: pytest.FixtureRequest
) -> None:
    whole, tokens = tokens, request.getfixturevalue(made)
    tokenizer = Tokenizer.from_file(str(tokens / "tokenizer" / "tokenizer.json"))
    for shard in ("train-notes", "heldout-letters"):
        stream = np.fromfile(whole / "shards" / f"{shard}.bin", "uint16")
        for offset in range(0, len(stream), 97):
            found = locate(tokens, shard, offset)
            assert found.token == stream[offset]
            assert found.source == shard.partition("-")[2]
            path = Path(found.path)
            assert path.parent.name == found.source
            start = offset - found.within
            document = tokenizer.decode(stream[start : start + found.tokens - 1].tolist(), skip_special_tokens=False)
            text = TEXTS[found.source][4 * int(path.stem) + int(found.id.partition("#")[2]) - 1]
            assert document == tokenizer.normalizer.normalize_str(text)


def test_a_missing_token_is_one_line(tokens: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no such shard\. Known: heldout-letters, heldout-notes, train-letters"):
        locate(tokens, "train-lettres", 0)
    with pytest.raises(ConfigError, match=r"--offset 999999 is out of range. train-letters has tokens 0 to "):
        locate(tokens, "train-letters", 999_999)
