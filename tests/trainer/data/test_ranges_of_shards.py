"""Token shards on nodes without a shared folder: each fetches what its ranks read, and reads what one machine would."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cupola_platform.artifacts import seal
from cupola_platform.artifacts.blocks import write_blocks
from cupola_platform.corpus.tokenizer.shards import ShardWriter
from cupola_platform.errors import CorruptArtifactError
from cupola_platform.store import LocalStore
from cupola_platform.store.s3 import S3Store
from cupola_platform.unshared import partly
from cupola_platform.unshared.blocks import Blocks
from cupola_trainer import runtime
from cupola_trainer.config import BatchConfig, LayoutConfig, NextTokenData
from cupola_trainer.data.pretraining.tokens import build
from cupola_trainer.evaluation.likelihood import heldout_documents
from cupola_trainer.objectives.next_token import NextTokenObjective

LENGTH = 8192
"""Tokens of a sample."""


@pytest.fixture(autouse=True, scope="module")
def _process_group() -> None:
    runtime.start(LayoutConfig(), seed=0)


@pytest.fixture(scope="module")
def tokens_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `tokens` artifact of 40 samples and more, which are the bytes of the standard library's files."""
    folder = tmp_path_factory.mktemp("tokens")
    (folder / "shards").mkdir()
    texts = [np.frombuffer(file.read_bytes(), np.uint8) for file in sorted(Path(json.__file__).parents[1].glob("*.py"))]
    sources: dict[str, dict[str, dict[str, Any]]] = {"code": {}}
    for split, several in (("train", texts[:30]), ("heldout", texts[30:33])):
        with ShardWriter(folder / "shards" / f"{split}-code", "uint16", max_bytes=200_000) as shard:
            for text in several:
                shard.add(text)
        for name in shard.names:
            write_blocks(folder / "shards" / f"{name}.bin")
        sources["code"][split] = {"documents": shard.documents, "tokens": shard.tokens, "files": shard.names}
    assert len(sources["code"]["train"]["files"]) > 3
    (folder / "index.json").write_text(json.dumps({"vocab_size": 320, "end_of_document": 0, "sources": sources}))
    return folder


@pytest.fixture
def node(tokens_folder: Path, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes this process one of a node, and returns the folder of the tokens there."""
    url = f"s3://{s3.bucket}/{tmp_path.name}"
    shutil.copytree(tokens_folder, tmp_path / "made")
    store = S3Store(url, cache=LocalStore(tmp_path / "cache"), endpoint_url=s3.endpoint_url)
    digest = store.put(seal(tmp_path / "made", kind="tokens")).digest
    monkeypatch.setattr(Blocks, "fetched", 0)

    def be(name: str) -> Path:
        variables = {
            "CUPOLA_STORE_URL": url, "CUPOLA_S3_ENDPOINT_URL": s3.endpoint_url, "CUPOLA_HOME": str(tmp_path / name),
            "CUPOLA_JOB_SECTION": "jobs/x", "CUPOLA_JOB_FOLDER": "x", "CUPOLA_JOB_CACHE": "1",
        }  # fmt: skip
        for variable, value in variables.items():
            monkeypatch.setenv(variable, value)
        partly.node_cache.cache_clear()
        with partly.node_cache().holding([digest]):
            pass
        return partly.node_cache().root / digest

    return be


def samples(folder: Path, indices: range | None = None, *, ahead: bool = False) -> dict[int, np.ndarray]:
    """Samples of one epoch, by index."""
    train, _ = build(NextTokenData(tokens=folder), sequence_length=LENGTH, seed=1)
    chosen = range(train.epoch) if indices is None else indices
    if ahead:
        train.fetch(chosen)
    before = Blocks.fetched
    read = {index: train[index] for index in chosen}
    assert not ahead or Blocks.fetched == before, "everything was there"
    return read


def test_two_nodes_read_the_same_samples_and_fetch_less_than_two_copies(
    node: Callable[[str], Path], tokens_folder: Path
) -> None:
    alone = samples(tokens_folder)
    size = sum(path.stat().st_size for path in (tokens_folder / "shards").glob("train-*.bin"))
    assert len(alone) > 40
    first = samples(node("a"), range(0, len(alone), 2))
    second = samples(node("b"), range(1, len(alone), 2), ahead=True)
    assert (first | second).keys() == alone.keys()
    for index, tokens in (first | second).items():
        assert np.array_equal(tokens, alone[index])
    assert size * 0.9 < Blocks.fetched < size * 1.5


def test_samples_are_fetched_ahead_once(node: Callable[[str], Path]) -> None:
    data = NextTokenData(tokens=node("a"))
    objective = NextTokenObjective(data, batch=BatchConfig(sequence_length=LENGTH), seed=1)
    objective.expect([0, 1])
    fetched = Blocks.fetched
    assert fetched > 0
    for index in (0, 1):
        objective.sample(index)
    assert Blocks.fetched == fetched


def test_heldout_documents_and_a_missing_shard(node: Callable[[str], Path], tokens_folder: Path) -> None:
    folder = node("a")
    there, here = heldout_documents(folder, 10_000), heldout_documents(tokens_folder, 10_000)
    assert [document.tolist() for document in there] == [document.tolist() for document in here]
    (folder / ".elsewhere.json").unlink()
    with pytest.raises(CorruptArtifactError, match=r"train-code\.bin is missing\. Make or fetch the artifact again"):
        samples(folder)
