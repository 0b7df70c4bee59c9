import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cupola_platform.artifacts import seal
from cupola_platform.artifacts.digests import digest_bytes
from cupola_platform.errors import ConfigError, CorruptArtifactError
from cupola_platform.store import LocalStore
from cupola_platform.store.s3 import S3Store
from cupola_platform.unshared.cache import Cache


@pytest.fixture
def store(s3: Any, tmp_path: Path) -> S3Store:
    url = f"s3://{s3.bucket}/{tmp_path.name}"
    return S3Store(url, cache=LocalStore(tmp_path / "here"), endpoint_url=s3.endpoint_url)


@pytest.fixture
def publish(store: S3Store, make_folder: Callable[..., Path]) -> Callable[..., str]:
    """A function that puts an artifact of some bytes into the store and returns its digest."""

    def publish(name: str, size: int = 100, kind: str = "tokens", file: str = "data") -> str:
        return store.put(seal(make_folder(name, {file: name[0] * size}), kind=kind)).digest

    return publish


@pytest.fixture
def cache(store: S3Store, tmp_path: Path) -> Cache:
    """A cache of 300 bytes."""
    return Cache(tmp_path / "there", 300, store.objects(""))


def kept(cache: Cache) -> set[str]:
    return {path.name for path in cache.root.glob("*/") if not path.name.startswith(".")}


def spent(cache: Cache) -> int:
    return sum(path.stat().st_size for path in cache.root.rglob("data"))


def test_the_artifact_unused_for_longest_makes_room_and_the_bound_holds(
    cache: Cache, publish: Callable[..., str]
) -> None:
    digests = [publish(name) for name in ("a", "b", "c")]
    cache.limit = 2000  # manifests and notes count too
    for age, digest in enumerate(digests):
        with cache.holding([digest]) as fetched:
            assert (fetched.new, fetched.kept) == (100, 0)
        os.utime(cache.root / digest, (age, age))
    with cache.holding([digests[0]]) as fetched:
        assert (fetched.new, fetched.kept) == (0, 100)
    used = sum(path.stat().st_size for path in cache.root.rglob("*") if path.is_file())
    cache.limit = used
    with cache.holding([publish("d", 50)]):
        assert digests[1] not in kept(cache), "used before the others"
        assert {digests[0], digests[2]} <= kept(cache)
    assert sum(path.stat().st_size for path in cache.root.rglob("*") if path.is_file()) <= used


def test_what_is_in_use_stays_and_what_does_not_fit_is_refused(cache: Cache, publish: Callable[..., str]) -> None:
    first, second, third = publish("a", 4000), publish("b", 4000), publish("c", 9000)
    cache.limit = 8000
    says = r"inputs are 8\.38e-06 GiB, and a node may keep 7\.45e-06"
    with pytest.raises(ConfigError, match=says), cache.holding([third]):
        pass
    with cache.holding([first]):
        with pytest.raises(ConfigError, match="other jobs of this node use the rest"), cache.holding([second]):
            pass
        assert first in kept(cache)
    with cache.holding([second]):
        assert kept(cache) == {second}


def test_a_changed_file_is_fetched_again_and_one_changed_in_the_store_is_refused(
    cache: Cache, publish: Callable[..., str], s3: Any, tmp_path: Path
) -> None:
    cache.limit = 5000
    digest = publish("a")
    with cache.holding([digest]):
        (cache.root / digest / "data").write_text("b" * 100)
    with cache.holding([digest]) as fetched:
        assert fetched.new == 100
        assert (cache.root / digest / "data").read_text() == "a" * 100
    (cache.root / digest / "data").unlink()
    s3.client.put_object(Bucket=s3.bucket, Key=f"{tmp_path.name}/artifacts/{digest}/data", Body=b"b" * 100)
    with pytest.raises(CorruptArtifactError, match="data is corrupt"), cache.holding([digest]):
        pass


def test_large_files_of_checkpoints_are_left_to_be_read_by_range(cache: Cache, publish: Callable[..., str]) -> None:
    cache.limit = 5000
    digest = publish("a", kind="checkpoint", file="state/rank_00000.bin")
    with cache.holding([digest]) as fetched:
        assert fetched.new == 0
        assert not (cache.root / digest / "state").exists()


def test_ranges_are_kept_within_the_bound_and_oldest_go_first(cache: Cache) -> None:
    contents = [bytes([number]) * 100 for number in range(4)]
    for age, content in enumerate(contents):
        assert cache.range(digest_bytes(content), lambda content=content: content) == content  # type: ignore[misc]
        os.utime(cache.root / "ranges" / digest_bytes(content), (age, age))
    assert {path.name for path in (cache.root / "ranges").iterdir()} == {digest_bytes(each) for each in contents[1:]}
    assert cache.range(digest_bytes(contents[1]), lambda: b"not asked") == contents[1]
    huge = b"x" * 400
    assert cache.range(digest_bytes(huge), lambda: huge) == huge
    assert not (cache.root / "ranges" / digest_bytes(huge)).exists()
