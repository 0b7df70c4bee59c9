"""A source's tokens as one stream over all its shard files, read by range: from a file, or, on nodes without a shared
folder, from the blocks of one that this machine has only in part."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from cupola_platform.artifacts.elsewhere import Elsewhere
from cupola_platform.corpus.tokenizer.shard_index import ShardIndex, open_shards
from cupola_platform.errors import CorruptArtifactError
from cupola_platform.unshared.blocks import Blocks
from cupola_platform.unshared.partly import node_cache

OPEN_FILES = 256
"""Shards that a process keeps open. Most systems let it open 1,024 files."""

Span = tuple[int, int]
"""First token and number of tokens."""


class Stream:
    """The tokens of a source's split, one document after another."""

    def __init__(self, folder: Path, counts: Mapping[str, Any], split: str, source: str) -> None:
        """
        Args:
            folder: a `tokens` artifact's folder.
            counts: what its `index.json` says about the split.

        Raises:
            CorruptArtifactError: a shard is missing or truncated, or they hold other counts than `index.json`.
        """
        self.name = f"{split}-{source}"
        self._shards = [Shard(index) for index in open_shards(folder, counts, split, source)]
        self._ends = np.cumsum([shard.index.tokens for shard in self._shards])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def is_here(self) -> bool:
        """Whether this machine has all the tokens."""
        return all(shard.is_here for shard in self._shards)

    def lengths(self) -> Iterator[int]:
        """Tokens of each document."""
        for shard in self._shards:
            yield from map(int, shard.index.lengths)

    def read(self, first: int, count: int) -> np.ndarray:
        """Tokens from `first` on, int64 [count]. After the stream's last token comes its first.

        Raises:
            CorruptArtifactError: a file has become shorter, or the store has other bytes than the artifact had.
            StoreError: the store does not answer.
        """
        parts = [shard.read(*span) for shard, span in self._parts(first, count)]
        return np.concatenate(parts, dtype=np.int64)

    def fetch(self, spans: Iterable[Span]) -> None:
        """Fetch what will be read, many spans at once, if this machine does not have it. Errors: see `read`."""
        wanted: dict[Shard, list[Span]] = defaultdict(list)
        for first, count in spans:
            for shard, span in self._parts(first, count):
                wanted[shard].append(span)
        for shard, several in wanted.items():
            shard.fetch(several)

    def _parts(self, first: int, count: int) -> Iterator[tuple["Shard", Span]]:
        """What of each shard belongs to a span."""
        while count:
            first %= len(self)
            number = int(np.searchsorted(self._ends, first, side="right"))
            shard, end = self._shards[number], int(self._ends[number])
            size = min(count, end - first)
            yield shard, (first - (end - shard.index.tokens), size)
            first, count = first + size, count - size


class Shard:
    """A pair of `.idx` and `.bin` files. The second may be in the store only."""

    def __init__(self, index: ShardIndex) -> None:
        """Raises CorruptArtifactError: the `.bin` is missing or has another size than the index says."""
        self.index, self.path = index, index.tokens_path
        self.is_here = self.path.is_file()
        if self.is_here:
            index.check_size(self.path.stat().st_size)
        elif Elsewhere.read(self.path.parents[1]) is None:
            raise CorruptArtifactError(f"{self.path} is missing. Make or fetch the artifact again.")

    def read(self, first: int, count: int) -> np.ndarray:
        """Tokens [count] from `first` on, by `pread`: other than with a memory map, Python's other threads run
        meanwhile, and a file that was truncated is an error and not a SIGBUS."""
        begin, size = self._bytes((first, count))
        if self.is_here:
            content = os.pread(_opened(self.path).fileno(), size, begin)
        else:
            content = _blocks(self.path).read(begin, size)
        if len(content) < size:
            raise CorruptArtifactError(f"{self.path} was truncated. Make or fetch the artifact again.")
        return np.frombuffer(content, self.index.dtype)

    def fetch(self, spans: Iterable[Span]) -> None:
        if not self.is_here:
            _blocks(self.path).fetch(map(self._bytes, spans))

    def _bytes(self, span: Span) -> Span:
        return span[0] * self.index.dtype.itemsize, span[1] * self.index.dtype.itemsize


@lru_cache(OPEN_FILES)
def _opened(path: Path) -> FileIO:
    return FileIO(path)


@lru_cache(OPEN_FILES)
def _blocks(path: Path) -> Blocks:
    folder = path.parents[1]
    return Blocks(folder, path.relative_to(folder).as_posix(), node_cache())
