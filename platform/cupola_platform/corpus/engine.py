"""Where the steps run: in this process and in worker processes of this machine.

What the steps do is theirs; another engine (a cluster's) needs only `Step` and `Tally`.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

from cupola_platform.corpus.documents import Document, Drop, Tally
from cupola_platform.corpus.pool import WorkerPool

Progress = Callable[[str, int, int], None]
"""Called with a step's name, how much is done and how much there is (0 when that is not known)."""

CHUNK_BYTES = 1 << 19
"""Text in one message to a worker: large enough to hide the message, small enough for a lively progress bar."""

T = TypeVar("T")


class Step(Protocol):
    """One step of cleaning: gives back every document it was given, in order, kept (perhaps changed) or dropped."""

    @property
    def name(self) -> str: ...

    def __call__(self, documents: Sequence[Document]) -> list[Document | Drop]: ...


def run_step(step: Step, documents: Sequence[Document]) -> tuple[list[Document], Tally]:
    """The documents that one step keeps, and what it did."""
    tally = Tally(step.name)
    start = time.process_time()
    kept: list[Document] = []
    for before, after in zip(documents, step(documents), strict=True):
        tally.count(before, after)
        if isinstance(after, Document):
            kept.append(after)
    tally.seconds = time.process_time() - start
    tally.check()
    return kept, tally


def run_chunk(work: tuple[Sequence[Step], Sequence[Document]]) -> tuple[list[Document], list[Tally]]:
    """Several steps after one another on the same documents: one message to a worker."""
    steps, documents = work
    tallies = []
    for step in steps:
        documents, tally = run_step(step, documents)
        tallies.append(tally)
    return list(documents), tallies


def run_per_document(
    steps: Sequence[Step], documents: Iterable[Document], pool: WorkerPool, progress: Callable[[int], None]
) -> tuple[list[Document], list[Tally]]:
    """Steps that look at one document at a time, spread over the pool; the order of documents stays."""
    kept: list[Document] = []
    tallies = [Tally(step.name) for step in steps]
    work = ((steps, chunk) for chunk in chunked(documents, lambda document: document.size))
    for documents_out, parts in pool.map(run_chunk, work):
        kept += documents_out
        for tally, part in zip(tallies, parts, strict=True):
            tally.add(part)
        if parts:
            progress(parts[0].bytes_in)
    return kept, tallies


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
