"""Files of which a node fetches the blocks that it reads."""

import multiprocessing
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cupola_platform.artifacts import Artifact, seal, verify
from cupola_platform.artifacts.blocks import BLOCK, write_blocks
from cupola_platform.errors import CorruptArtifactError
from cupola_platform.store import LocalStore
from cupola_platform.store.s3 import S3Store
from cupola_platform.unshared.blocks import Blocks
from cupola_platform.unshared.cache import Cache

TOKENS = random.Random(0).randbytes(20 * BLOCK + 100)
PATH = "shards/train-web.bin"


@pytest.fixture
def store(s3: Any, tmp_path: Path) -> S3Store:
    url = f"s3://{s3.bucket}/{tmp_path.name}"
    return S3Store(url, cache=LocalStore(tmp_path / "here"), endpoint_url=s3.endpoint_url)


@pytest.fixture
def tokens(store: S3Store, tmp_path: Path) -> Artifact:
    """An artifact with one large file."""
    (tmp_path / "made" / "shards").mkdir(parents=True)
    (tmp_path / "made" / PATH).write_bytes(TOKENS)
    (tmp_path / "made" / "index.json").write_text("{}")
    write_blocks(tmp_path / "made" / PATH)
    return store.put(seal(tmp_path / "made", kind="tokens"))


@pytest.fixture
def node(
    store: S3Store, tokens: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Blocks]]:
    """Opens the file on a node whose job holds the artifact; the node's cache has a bound."""
    monkeypatch.setattr(Blocks, "fetched", 0)
    with ExitStack() as jobs:

        def open_(name: str, bound: int = 1 << 20) -> Blocks:
            cache = Cache(tmp_path / name, 1 << 20, store.objects(""))
            fetched = jobs.enter_context(cache.holding([tokens.digest]))
            assert fetched.new + fetched.kept == 21 * 16 + 2
            cache.limit = bound
            return Blocks(cache.root / tokens.digest, PATH, cache)

        yield open_


def test_only_the_blocks_that_are_read_are_fetched_and_once_for_a_node(
    node: Callable[..., Blocks], tokens: Artifact
) -> None:
    blocks = node("a")
    for first, count in ((0, 1), (BLOCK - 1, 2), (5 * BLOCK, BLOCK), (20 * BLOCK + 90, 10), (3, 0)):
        assert blocks.read(first, count) == TOKENS[first : first + count]
    assert Blocks.fetched == 3 * BLOCK + 100
    assert not (blocks.cache.root / tokens.digest / PATH).exists()
    verify(blocks.cache.root / tokens.digest)
    again = node("a")
    assert again.read(0, 2 * BLOCK) == TOKENS[: 2 * BLOCK]
    assert Blocks.fetched == 3 * BLOCK + 100
    again.fetch([(0, len(TOKENS))])
    assert Blocks.fetched == len(TOKENS)
    assert again.cache.in_part([tokens.digest]) == (len(TOKENS), len(TOKENS))


def test_a_block_that_was_not_written_to_the_end_is_fetched_again(
    node: Callable[..., Blocks], tokens: Artifact
) -> None:
    blocks = node("a")
    blocks.read(0, 3 * BLOCK)
    with (blocks.cache.root / f"{tokens.digest}.partial" / PATH).open("r+b") as kept:
        kept.seek(BLOCK + 7)
        kept.write(b"\0" * 100)
    assert blocks.read(0, 3 * BLOCK) == TOKENS[: 3 * BLOCK]
    assert Blocks.fetched == 4 * BLOCK


def test_bytes_that_were_changed_in_the_store_are_refused(
    node: Callable[..., Blocks], store: S3Store, tokens: Artifact
) -> None:
    changed = TOKENS[: 2 * BLOCK] + b"x" + TOKENS[2 * BLOCK + 1 :]
    store.objects("artifacts").write(f"{tokens.digest}/{PATH}", changed)
    blocks = node("a")
    assert blocks.read(0, BLOCK) == TOKENS[:BLOCK]
    with pytest.raises(CorruptArtifactError, match=r"shards/train-web\.bin was changed in the store: block 2 of 2048"):
        blocks.read(2 * BLOCK, 1)


def test_without_room_blocks_are_read_and_not_kept(node: Callable[..., Blocks], tokens: Artifact) -> None:
    blocks = node("a", bound=0)
    for _ in range(2):
        assert blocks.read(0, BLOCK) == TOKENS[:BLOCK]
    assert Blocks.fetched == 2 * BLOCK
    assert blocks.cache.in_part([tokens.digest]) == (0, len(TOKENS))


def fetch(blocks: Blocks, counts: Any) -> None:
    Blocks.fetched = 0
    blocks.fetch([(0, len(TOKENS))])
    assert blocks.read(0, len(TOKENS)) == TOKENS
    counts.put(Blocks.fetched)


def test_processes_of_a_node_fetch_every_block_once(node: Callable[..., Blocks]) -> None:
    blocks, processes = node("a"), multiprocessing.get_context("fork")
    counts = processes.Queue()
    ranks = [processes.Process(target=fetch, args=(blocks, counts)) for _ in range(3)]
    for rank in ranks:
        rank.start()
    fetched = [counts.get(timeout=60) for _ in ranks]
    for rank in ranks:
        rank.join()
    assert sorted(fetched) == [0, 0, len(TOKENS)]
