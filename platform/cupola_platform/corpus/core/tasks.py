"""What every task shares, whichever step it runs: chunks of documents, its tally, small files, dying with its
driver."""

import ctypes
import json
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import multiprocess

from cupola_platform.corpus.core.documents import Tally

CHUNK_BYTES = 1 << 19
"""Text that a step is given at once."""

_PR_SET_PDEATHSIG = 1

T = TypeVar("T")


def chunked(items: Iterable[T], size: Callable[[T], int], bound: int = CHUNK_BYTES) -> Iterator[list[T]]:
    """Consecutive items in lists of about `bound` bytes."""
    chunk: list[T] = []
    filled = 0
    for item in items:
        chunk.append(item)
        filled += size(item)
        if filled >= bound:
            yield chunk
            chunk, filled = [], 0
    if chunk:
        yield chunk


def save_tally(work: Path, tally: Tally, rank: int) -> None:
    """Keep what a step did in one task. Raises AssertionError when it lost count."""
    tally.check()
    write(work / "tallies" / tally.step / f"{rank:05d}.json", json.dumps(asdict(tally), ensure_ascii=False))


def sum_tallies(work: Path, step: str, sources: Sequence[str]) -> dict[str, Tally]:
    """What a step did with each source; `sources`: of each task, in the tasks' order."""
    tallies: dict[str, Tally] = {}
    for rank, source in enumerate(sources):
        text = (work / "tallies" / step / f"{rank:05d}.json").read_text(encoding="utf-8")
        tallies.setdefault(source, Tally(step)).add(Tally.of(json.loads(text)))
    return tallies


def write(path: Path, text: str) -> None:
    """Write a small file into a folder that may not be there yet. Its task syncs it: see `pipeline.runner.Sync`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def end_with_parent() -> None:
    """A worker must not go on writing when its driver was killed: another one may do the same task by then."""
    if multiprocess.parent_process() is not None:
        die_with_parent()


def die_with_parent() -> None:
    """SIGKILL for this process when its parent ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
