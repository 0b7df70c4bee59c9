"""A large file of an artifact of which a node needs some parts: blocks are fetched when they are read, and kept on its
disk in a sparse file, as far as its cache has room.

Nothing says which blocks are there: a block that has its digest is. So processes of the node, and starts of the job,
share the file without agreeing on anything, and one that was not written to the end is fetched again.
"""

import fcntl
import mmap
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from cupola_platform.artifacts import read
from cupola_platform.artifacts.blocks import BLOCK, DIGEST, digest_of, digests_of
from cupola_platform.artifacts.elsewhere import Elsewhere
from cupola_platform.errors import CorruptArtifactError
from cupola_platform.unshared.cache import PARTIAL, Cache
from cupola_platform.unshared.patience import insist

AT_ONCE = 16
"""Requests of a process at a time."""
LONGEST = (16 << 20) // BLOCK
"""Blocks of one request."""
_COUNTING = threading.Lock()


class Blocks:
    """One such file."""

    fetched = 0
    """Bytes that this process fetched, of all files."""

    def __init__(self, folder: Path, path: str, cache: Cache) -> None:
        """
        Args:
            folder: the artifact's, in the node's cache.
            path: the file's, relative to it.

        Raises:
            CorruptArtifactError: nothing says where the file is.
        """
        elsewhere = Elsewhere.read(folder)
        if elsewhere is None:
            raise CorruptArtifactError(f"{folder / path} is missing. Make or fetch the artifact again.")
        self.cache = cache
        self.name = f"{elsewhere.at}/{path}"
        self.size = next(file.size for file in read(folder).manifest.files if file.path == path)
        with (folder / digests_of(path)).open("rb") as digests:  # mapped: all ranks of a node share the memory
            self._digests = mmap.mmap(digests.fileno(), 0, access=mmap.ACCESS_READ)
        kept = folder.with_name(folder.name + PARTIAL) / path
        kept.parent.mkdir(parents=True, exist_ok=True)
        self._lock = kept.with_name(f"{kept.name}.lock")
        self._file = os.open(kept, os.O_RDWR | os.O_CREAT, 0o644)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def read(self, first: int, count: int) -> bytes:
        """`count` bytes from `first` on.

        Raises:
            CorruptArtifactError: the store has other bytes there than when the artifact was made.
            StoreError: the store does not answer, see `insist`.
        """
        numbers = _blocks(first, count)
        there = {number: block for number in numbers if (block := self._kept(number)) is not None}
        if len(there) < len(numbers):
            there = self._fetch(numbers)
        content = b"".join(there[number] for number in numbers)
        start = first - numbers.start * BLOCK
        return content[start : start + count]

    def fetch(self, spans: Iterable[tuple[int, int]]) -> None:
        """Fetch what will be read, as (first byte, number of bytes), many blocks at once. Errors: see `read`."""
        numbers = sorted({number for first, count in spans for number in _blocks(first, count)})
        for start in range(0, len(numbers), AT_ONCE * LONGEST):
            some = numbers[start : start + AT_ONCE * LONGEST]
            self._fetch([number for number in some if self._kept(number) is None])

    def _fetch(self, numbers: Sequence[int]) -> dict[int, bytes]:
        """These blocks, from this disk or from the store. Of several processes, one fetches and the others wait."""
        if not numbers:
            return {}
        with self._alone():
            there = {number: block for number in numbers if (block := self._kept(number)) is not None}
            with ThreadPoolExecutor(AT_ONCE) as pool:
                for new in pool.map(self._get, _runs([number for number in numbers if number not in there])):
                    there |= new
        return there

    def _get(self, run: range) -> dict[int, bytes]:
        """Adjacent blocks, from the store."""
        first = run.start * BLOCK
        count = min(run.stop * BLOCK, self.size) - first
        content = insist(lambda: self.cache.objects.read(self.name, first, count))
        blocks = {number: content[(number - run.start) * BLOCK :][:BLOCK] for number in run}
        for number, block in blocks.items():
            if not self._is(number, block):
                raise CorruptArtifactError(f"{self.name} was changed in the store: block {number} of {BLOCK} bytes.")
        with _COUNTING:
            Blocks.fetched += len(content)
        if self.cache.admits(len(content)):
            os.pwrite(self._file, content, first)
        return blocks

    def _kept(self, number: int) -> bytes | None:
        """A block on this disk; None if it is not there."""
        block = os.pread(self._file, BLOCK, number * BLOCK)
        return block if self._is(number, block) else None

    def _is(self, number: int, block: bytes) -> bool:
        return digest_of(block) == self._digests[number * DIGEST : (number + 1) * DIGEST]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._lock.open("w") as file:  # opened each time: a lock belongs to an open file, not to a thread
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _blocks(first: int, count: int) -> range:
    return range(first // BLOCK, -(-(first + count) // BLOCK))


def _runs(numbers: Sequence[int]) -> list[range]:
    """Numbers in ascending order as ranges of adjacent ones, none longer than one request."""
    runs: list[range] = []
    for number in numbers:
        if runs and runs[-1].stop == number and len(runs[-1]) < LONGEST:
            runs[-1] = range(runs[-1].start, number + 1)
        else:
            runs.append(range(number, number + 1))
    return runs
