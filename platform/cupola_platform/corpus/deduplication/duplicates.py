"""Duplicate removal over a corpus of any size, as datatrove pipeline steps.

Documents are identified by their index over all tasks. Exact duplicates are found by digest, near ones by `minhash`.
What may not fit in memory is kept in files: band keys, shingle sets and clusters.
"""

from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from cupola_platform.corpus.config import DeduplicationConfig
from cupola_platform.corpus.core.document_files import I64, U64, first_indices, read_array, read_name, save_array
from cupola_platform.corpus.core.documents import Document, Drop, Tally, drop
from cupola_platform.corpus.core.shingles import shingle
from cupola_platform.corpus.core.tasks import chunked, end_with_parent, save_tally
from cupola_platform.corpus.deduplication.minhash import band_keys, minhash, pairs_in_runs, root, rows_per_band, similar

RANGE_DOCUMENTS = 1 << 22
"""Documents whose digests or keys are sorted at once."""

CANDIDATES = 1 << 16
"""Candidate pairs held as Python integers at once."""


class FindEqual(PipelineStep):  # type: ignore[misc]
    """Writes pairs of (index, index of the first document with the same text); one task per range of digests."""

    type, name = "duplicates", "equal digests"

    def __init__(self, documents: Path, tasks: int, pairs: Path) -> None:
        super().__init__()
        self.documents, self.tasks, self.pairs = documents, tasks, pairs

    def run(self, data: None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        end_with_parent()
        digests, numbers = in_range(self.documents, self.tasks, "digests", None, rank, world_size)
        order = np.lexsort((numbers, digests[:, 1], digests[:, 0]))
        digests, numbers = digests[order], numbers[order]
        begins = np.ones(len(numbers), bool)
        begins[1:] = (digests[1:] != digests[:-1]).any(axis=1)
        first = numbers[begins][np.cumsum(begins) - 1]
        save_pairs(self.pairs, rank, np.stack([numbers, first], axis=1)[~begins])
        yield from ()


class DropDuplicates(PipelineStep):  # type: ignore[misc]
    """Drops duplicates of earlier documents."""

    type = "filter"

    def __init__(self, step: str, reason: str, documents: Path, tasks: int, pairs: Path, work: Path) -> None:
        self.name = step
        super().__init__()
        self.reason, self.documents, self.tasks, self.pairs, self.work = reason, documents, tasks, pairs, work

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        begins = first_indices(self.documents, self.tasks)
        first_of = dict(pairs_between(self.pairs, begins[rank], begins[rank + 1]).tolist())
        tally = Tally(self.name)
        for number, document in enumerate(data, start=int(begins[rank])):
            outcome: Document | Drop = document
            if number in first_of:
                example = tally.wants_example(self.reason)
                outcome = drop(
                    document,
                    self.reason,
                    f"of {read_name(self.documents, begins, first_of[number])}" if example else "",
                )
            tally.count(document, outcome)
            if isinstance(outcome, Document):
                yield outcome
        save_tally(self.work, tally, rank)


class Signatures(PipelineStep):  # type: ignore[misc]
    """Saves each document's band keys, [bands, documents], and its sorted set of shingles."""

    type, name = "duplicates", "MinHash signatures"

    def __init__(self, config: DeduplicationConfig, seed: int, to: Path) -> None:
        super().__init__()
        self.config, self.seed, self.to = config, seed, to

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        rows = rows_per_band(self.config.threshold, self.config.num_permutations)
        keys: list[U64] = []
        ends = [0]
        self.to.mkdir(parents=True, exist_ok=True)
        with (self.to / f"{rank:05d}.shingles").open("wb") as sets:
            for chunk in chunked(data, lambda document: document.size):
                shingles = shingle([document.text for document in chunk], self.config.ngram)
                signatures = minhash(shingles, self.config.num_permutations, self.seed)
                bands = range(0, signatures.shape[1] - rows + 1, rows)
                keys.append(np.stack([band_keys(signatures[:, start : start + rows]) for start in bands]))
                for place in range(len(chunk)):
                    unique = shingles.unique(place)
                    sets.write(unique.tobytes())
                    ends.append(ends[-1] + len(unique))
                yield from chunk
        count = self.config.num_permutations // rows
        save_array(self.to, rank, "keys", np.concatenate(keys, axis=1) if keys else np.zeros((count, 0), np.uint64))
        save_array(self.to, rank, "ends", np.array(ends, np.int64))


class FindSimilar(PipelineStep):  # type: ignore[misc]
    """Writes pairs of documents whose keys are equal in a band; one task per band."""

    type, name = "duplicates", "equal bands"

    def __init__(self, signatures: Path, tasks: int, pairs: Path) -> None:
        super().__init__()
        self.signatures, self.tasks, self.pairs = signatures, tasks, pairs

    def run(self, data: None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        end_with_parent()
        ends = [read_array(self.signatures, task, "ends") for task in range(self.tasks)]
        with_words = np.concatenate([np.diff(of) > 0 for of in ends])
        ranges = -(-len(with_words) // RANGE_DOCUMENTS)
        pairs = []
        for part in range(ranges):
            keys, numbers = in_range(self.signatures, self.tasks, "keys", rank, part, ranges)
            keys, numbers = keys[with_words[numbers]], numbers[with_words[numbers]]
            order = np.argsort(keys, kind="stable")
            pairs.append(pairs_in_runs(keys[order], numbers[order]))
        save_pairs(self.pairs, rank, np.concatenate(pairs) if pairs else np.zeros((0, 2), np.int64))
        yield from ()


class Cluster(PipelineStep):  # type: ignore[misc]
    """Writes pairs of (index, index of its cluster's first document), from all candidates that are truly similar."""

    type, name = "duplicates", "clusters"

    def __init__(self, signatures: Path, tasks: int, candidates: Path, threshold: float, pairs: Path) -> None:
        super().__init__()
        self.signatures, self.tasks, self.candidates = signatures, tasks, candidates
        self.threshold, self.pairs = threshold, pairs

    def run(self, data: None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        ends = [read_array(self.signatures, task, "ends") for task in range(self.tasks)]
        begins = np.cumsum([0, *(len(of) - 1 for of in ends)])
        sets = [_mapped(self.signatures / f"{task:05d}.shingles") for task in range(self.tasks)]

        def shingles_of(number: int) -> NDArray[np.uint32]:
            task = int(np.searchsorted(begins, number, side="right")) - 1
            place = number - int(begins[task])
            return sets[task][ends[task][place] : ends[task][place + 1]]

        parents = array("q", range(int(begins[-1])))
        for candidates in sorted(self.candidates.glob("*.npy")):
            pairs = np.load(candidates, mmap_mode="r")
            for start in range(0, len(pairs), CANDIDATES):
                for left, right in pairs[start : start + CANDIDATES].tolist():
                    a, b = root(parents, left), root(parents, right)
                    if a != b and similar(shingles_of(left), shingles_of(right), self.threshold):
                        parents[max(a, b)] = min(a, b)
        joined = np.flatnonzero(np.frombuffer(parents, np.int64) != np.arange(len(parents)))
        removed = np.array([(number, root(parents, number)) for number in joined.tolist()], np.int64).reshape(-1, 2)
        save_pairs(self.pairs, rank, removed)
        yield from ()


def in_range(folder: Path, tasks: int, name: str, row: int | None, part: int, parts: int) -> tuple[U64, I64]:
    """The values of all tasks' arrays in one of `parts` equal ranges of 64 bits, and their documents' indices."""
    low, high = (part << 64) // parts, ((part + 1) << 64) // parts - 1
    values, numbers, begin = [], [], 0
    for task in range(tasks):
        kept = read_array(folder, task, name)
        of = kept if row is None else kept[row]
        leading = of[:, 0] if row is None else of
        inside = np.flatnonzero((leading >= np.uint64(low)) & (leading <= np.uint64(high)))
        values.append(np.asarray(of[inside]))
        numbers.append(inside + begin)
        begin += len(of)
    return np.concatenate(values), np.concatenate(numbers)


def save_pairs(folder: Path, rank: int, pairs: I64) -> None:
    """Save unique pairs, sorted by the first column."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{rank:05d}.npy", np.unique(pairs, axis=0) if len(pairs) else pairs)


def pairs_between(folder: Path, low: np.int64, high: np.int64) -> I64:
    """The pairs whose document index is in a range."""
    parts = [np.zeros((0, 2), np.int64)]
    for path in sorted(folder.glob("*.npy")):
        pairs = np.load(path)
        parts.append(pairs[np.searchsorted(pairs[:, 0], low) : np.searchsorted(pairs[:, 0], high)])
    return np.concatenate(parts)


def _mapped(path: Path) -> NDArray[np.uint32]:
    return np.memmap(path, np.uint32, "r") if path.stat().st_size else np.zeros(0, np.uint32)
