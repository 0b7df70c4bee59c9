"""Shared by the tasks of all steps: chunks of documents, tallies, small files, and dying with the driver."""

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
"""Bytes of text passed to a step at once."""

_PR_SET_PDEATHSIG = 1

T = TypeVar("T")


def chunked(items: Iterable[T], size: Callable[[T], int], bound: int = CHUNK_BYTES) -> Iterator[list[T]]:
    """Consecutive items, grouped into lists of about `bound` bytes."""
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
    """Save a step's tally of one task. Raises AssertionError if its counts do not add up."""
    tally.check()
    write(work / "tallies" / tally.step / f"{rank:05d}.json", json.dumps(asdict(tally), ensure_ascii=False))


def sum_tallies(work: Path, step: str, sources: Sequence[str]) -> dict[str, Tally]:
    """A step's tally per source; `sources` has each task's source, in task order."""
    tallies: dict[str, Tally] = {}
    for rank, source in enumerate(sources):
        text = (work / "tallies" / step / f"{rank:05d}.json").read_text(encoding="utf-8")
        tallies.setdefault(source, Tally(step)).add(Tally.of(json.loads(text)))
    return tallies


def write(path: Path, text: str) -> None:
    """Write a small file, creating its folder. The task syncs it later: see `pipeline.runner.Sync`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def end_with_parent() -> None:
    """Kill a worker process with its driver, since another driver may already be redoing its task."""
    if multiprocess.parent_process() is not None:
        die_with_parent()


def die_with_parent() -> None:
    """Have this process killed when its parent ends for any reason."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
