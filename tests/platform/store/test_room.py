"""A bounded cache: the least recently used artifacts make room, none that a process uses, also with two at once."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cupola_platform.artifacts import Artifact, seal, verify
from cupola_platform.settings import load_settings
from cupola_platform.store import LocalStore, open_store
from cupola_platform.store.room import Room, hold_if_cached
from cupola_platform.store.s3 import S3Store

MakeFolder = Callable[..., Path]
SIZE = 100_000
FETCH = """
import sys
from pathlib import Path
from cupola_platform.artifacts import verify
from cupola_platform.store import LocalStore
from cupola_platform.store.s3 import S3Store
url, endpoint, cache, limit, *digests = sys.argv[1:]
for digest in digests:
    store = S3Store(url, cache=LocalStore(Path(cache)), endpoint_url=endpoint, cache_size=int(limit))
    verify(store.get(digest).path)
print("done", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def made(s3: Any, tmp_path: Path, make_folder: MakeFolder) -> list[Artifact]:
    """Five artifacts of SIZE bytes in the bucket."""
    store = S3Store(
        f"s3://{s3.bucket}/{tmp_path.name}", cache=LocalStore(tmp_path / "origin"), endpoint_url=s3.endpoint_url
    )
    return [store.put(seal(make_folder(f"m{n}", {"x": str(n) * SIZE}), kind="checkpoint")) for n in range(5)]


@pytest.fixture
def user(s3: Any, tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """A function that starts a process which fetches artifacts into the cache, and uses them until it is ended."""
    started: list[subprocess.Popen[str]] = []

    def start(*artifacts: Artifact, artifacts_kept: float) -> "subprocess.Popen[str]":
        url, limit = f"s3://{s3.bucket}/{tmp_path.name}", int(artifacts_kept * SIZE)
        command = [sys.executable, "-c", FETCH, url, s3.endpoint_url, str(tmp_path / "cache"), str(limit)]
        started.append(
            subprocess.Popen(
                [*command, *(artifact.digest for artifact in artifacts)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def done(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "done\n", process.communicate()[1]


def end(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def cached(folder: Path, made: list[Artifact]) -> list[int]:
    """Numbers of the artifacts in the cache; each is whole."""
    digests = LocalStore(folder).digests()
    assert all(verify(folder / digest) for digest in digests)
    return [number for number, artifact in enumerate(made) if artifact.digest in digests]


@pytest.mark.slow
def test_the_least_recently_used_make_room_but_none_that_a_process_uses(
    made: list[Artifact], user: Any, tmp_path: Path
) -> None:
    first = user(made[0], artifacts_kept=2.5)
    done(first)
    time.sleep(0.02)
    second = user(made[1], artifacts_kept=2.5)
    done(second)
    end(second)
    third = user(made[2], artifacts_kept=2.5)
    done(third)
    assert cached(tmp_path / "cache", made) == [0, 2], "the oldest is in use, though not by this process"
    end(third)
    again = user(made[2], artifacts_kept=2.5)
    done(again)
    end(first)  # killed: the kernel frees its lock
    done(user(made[3], artifacts_kept=2.5))
    assert cached(tmp_path / "cache", made) == [2, 3]


def test_a_cache_whose_artifacts_are_all_in_use_goes_over_its_bound_and_says_so(
    made: list[Artifact], user: Any, tmp_path: Path
) -> None:
    process = user(*made[:3], artifacts_kept=1.5)
    done(process)
    assert cached(tmp_path / "cache", made) == [0, 1, 2]
    process.kill()
    assert "over cache_size: everything else in it is in use" in process.communicate()[1]
    done(user(made[3], artifacts_kept=1.5))
    assert cached(tmp_path / "cache", made) == [3]


@pytest.mark.slow
def test_several_processes_at_once_stay_within_the_bound(made: list[Artifact], user: Any, tmp_path: Path) -> None:
    for _ in range(3):
        several = [user(made[n], artifacts_kept=2.5) for n in range(4)]
        for process in several[:2]:
            done(process)
        for process in several:
            end(process)
    done(user(made[4], artifacts_kept=2.5))  # not there yet, so it makes room for what was kept only while in use
    left = cached(tmp_path / "cache", made)
    assert 4 in left
    assert len(left) <= 2


def test_a_job_keeps_the_artifacts_that_it_names_from_being_removed(tmp_path: Path) -> None:
    room = Room(tmp_path / "cache", None)
    for name in ("used", "unused"):
        (tmp_path / "cache" / name).mkdir(parents=True)
        room.added(name, 1)
    (tmp_path / "elsewhere").mkdir()
    for folder in ("cache/used", "elsewhere"):
        hold_if_cached(tmp_path / folder)
    assert not list(tmp_path.glob(".use-*"))
    assert (room.remove("used"), room.remove("unused")) == (False, True)
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == ["used"]


def test_the_bound_is_a_setting_in_gib(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUPOLA_STORE_URL", f"s3://{s3.bucket}/x")
    monkeypatch.setenv("CUPOLA_S3_ENDPOINT_URL", s3.endpoint_url)
    monkeypatch.setenv("CUPOLA_CACHE_SIZE", "1.5")
    store = open_store(load_settings(tmp_path))
    assert isinstance(store, S3Store)
    assert store.room.limit == 3 << 29
