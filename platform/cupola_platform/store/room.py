"""The bound of a cache: least recently used artifacts make room for new ones, but never one that a process uses.

A process that uses an artifact holds a shared lock on `.use-<digest>` in the cache's folder until it ends; the kernel
frees it, however the process ends. The file's content is the artifact's bytes, its time that of the last use. Removing
an artifact takes the lock exclusively.
"""

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

USE = ".use-"
INCOMING = ".incoming-"
LOCK = ".lock"

MOST_HELD = 256
"""Artifacts that one process keeps from being removed: those that it used last."""

log = logging.getLogger(__name__)
_held: dict[Path, Any] = {}
"""Lock files that this process keeps open, by last use."""


def hold(folder: Path) -> None:
    """Keep an artifact's folder in its cache while this process lives. Waits for a removal in progress to end."""
    mark = folder.parent / f"{USE}{folder.name}"
    if not os.access(folder.parent, os.W_OK):
        return  # this process fetches nothing, and a read-only cache loses nothing
    file = _held.pop(mark, None) or mark.open("a+")
    fcntl.flock(file, fcntl.LOCK_SH)
    _held[mark] = file
    if len(_held) > MOST_HELD:
        _held.pop(next(iter(_held))).close()
    os.utime(mark)


def hold_if_cached(folder: Path) -> None:
    """The same for any folder; one outside of caches needs no lock."""
    if (folder.parent / f"{USE}{folder.name}").is_file():
        hold(folder)


class Room:
    """The room in a cache's folder."""

    def __init__(self, root: Path, limit: int | None) -> None:
        """`limit` in bytes; None for no bound."""
        self.root, self.limit = root, limit

    @contextmanager
    def incoming(self, digest: str, size: int) -> Iterator[Path]:
        """The folder in which to fetch an artifact of `size` bytes, for which room is made. One process at a time."""
        folder = self.root / f"{INCOMING}{digest}"
        with folder.with_name(folder.name + LOCK).open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._make_room(digest, size, lock)
            yield folder

    def added(self, digest: str, size: int) -> None:
        """Say that an artifact is in the cache now, and make room for it."""
        (self.root / f"{USE}{digest}").write_text(str(size))
        self._make_room(digest, size)

    def remove(self, digest: str) -> bool:
        """Remove an artifact, unless a process uses it."""
        with (self.root / f"{USE}{digest}").open("a+") as mark:
            try:
                fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
            gone = self.root / f".removed-{digest}-{time.time_ns()}"
            with suppress(FileNotFoundError):
                (self.root / digest).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        return True

    def _make_room(self, digest: str, size: int, reservation: Any = None) -> None:
        if self.limit is None:
            return
        with (self.root / f".room{LOCK}").open("w") as one:
            fcntl.flock(one, fcntl.LOCK_EX)  # two processes would otherwise count the same room
            kept = self._artifacts()
            left = self.limit - size - self._arriving(digest) - sum(kept.values()) + kept.pop(digest, 0)
            for other in sorted(kept, key=lambda name: (self.root / f"{USE}{name}").stat().st_mtime):
                if left >= 0:
                    break
                if self.remove(other):
                    left += kept[other]
            if left < 0:
                log.warning(
                    "%s is %d MB over cache_size: everything else in it is in use.", self.root, -left // 1_000_000
                )
            if reservation:
                reservation.truncate(0)
                reservation.write(str(size))
                reservation.flush()

    def _artifacts(self) -> dict[str, int]:
        """Bytes of every complete artifact in the cache."""
        sizes = {}
        for entry in os.scandir(self.root):
            if entry.is_dir() and not entry.name.startswith("."):
                mark = self.root / f"{USE}{entry.name}"
                text = mark.read_text() if mark.is_file() else ""
                if not text:  # cached before there was a bound
                    text = str(sum(path.stat().st_size for path in Path(entry.path).rglob("*") if path.is_file()))
                    mark.write_text(text)
                sizes[entry.name] = int(text)
        return sizes

    def _arriving(self, digest: str) -> int:
        """Bytes for which other processes have reserved room."""
        total = 0
        for path in self.root.glob(f"{INCOMING}*{LOCK}"):
            if path.name == f"{INCOMING}{digest}{LOCK}":
                continue
            with path.open() as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except OSError:
                    total += int(lock.read() or 0)
        return total
