"""Inputs of jobs on a node's own disk, up to a bound: what was unused for longest goes first, what is in use never."""

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cupola_platform.artifacts import MANIFEST, FileEntry, Manifest, read
from cupola_platform.artifacts.blocks import LARGE, digests_of
from cupola_platform.artifacts.elsewhere import Elsewhere
from cupola_platform.artifacts.manifest import parse_manifest
from cupola_platform.artifacts.sealing import check_file
from cupola_platform.errors import ConfigError, CorruptArtifactError

if TYPE_CHECKING:
    from cupola_platform.store.plain import Objects

GIB = 1 << 30
RANGES = "ranges"
"""Folder of the parts of large files, each named by its digest."""
PARTIAL = ".partial"
"""Ends the name of the folder beside an artifact with files of which the node has some blocks."""
ROOM = 64 << 20
"""Bytes that a process makes room for at a time."""
FULL = 60.0
"""Seconds until a process looks again whether there is room."""
NOT_READ = ("report.html", "contaminated.jsonl", "sources.jsonl")
"""Files of artifacts that no job reads."""


@dataclass
class Fetched:
    """What a node fetched, in bytes."""

    new: int = 0
    kept: int = 0
    """What was there already."""


class Cache:
    """The inputs on a node's disk."""

    def __init__(self, root: Path, limit: float, objects: "Objects") -> None:
        """
        Args:
            limit: most bytes of all entries together.
            objects: everything in the store.
        """
        self.root, self.limit, self.objects = root, limit, objects
        self._free = 0.0
        """Bytes that this process may still write before it looks again what is there."""
        self._full_until = float("-inf")
        self._counting = threading.Lock()
        root.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def holding(self, digests: Sequence[str]) -> Iterator[Fetched]:
        """Fetch artifacts and keep them while the block runs. Ranks read the large files of checkpoints by range.

        Raises:
            ConfigError: they are larger than the limit.
            CorruptArtifactError: a file is not what its manifest says.
            NotFoundError, StoreError: the store does not have one, or cannot be reached.
        """
        amount = Fetched()
        with ExitStack() as locks:
            for digest in digests:
                locks.enter_context(self._lock(digest, fcntl.LOCK_SH))
                locks.enter_context(self._lock(digest + PARTIAL, fcntl.LOCK_SH))
            manifests = [parse_manifest(self.objects.read(f"artifacts/{d}/{MANIFEST}"), d, digest=d) for d in digests]
            wanted = sum(file.size for manifest in manifests for file in needed(manifest))
            if wanted > self.limit:
                raise ConfigError(
                    f"The job's inputs are {wanted / GIB:.3g} GiB, and a node may keep {self.limit / GIB:.3g}. Raise "
                    "`cache` of this cluster in cupola.toml."
                )
            if self._make_room(wanted - self._size(digests)) < 0:
                raise ConfigError(
                    f"{self.root} has no room for {wanted / GIB:.3g} GiB: other jobs of this node use the rest of its "
                    f"{self.limit / GIB:.3g} GiB. Raise `cache` of this cluster in cupola.toml."
                )
            for manifest in manifests:
                self._fetch(manifest, amount)
            yield amount

    def range(self, digest: str, fetch: Callable[[], bytes]) -> bytes:
        """A part of a file by its digest, from this disk or by `fetch`."""
        path = self.root / RANGES / digest
        try:
            content = path.read_bytes()
            os.utime(path)
        except FileNotFoundError:
            content = fetch()
            if not self.admits(len(content)):
                return content
            path.parent.mkdir(exist_ok=True)
            partial = path.with_name(f".{digest}.{os.getpid()}.{time.monotonic_ns()}")
            partial.write_bytes(content)
            partial.replace(path)
        return content

    def admits(self, size: int) -> bool:
        """Whether there is room for `size` more bytes, which the caller then writes. What was unused for longest makes
        room."""
        with self._counting:
            if size > self._free and time.monotonic() > self._full_until:
                ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # they all write, and look at different times
                wanted = max(size, min(ROOM, self.limit / 50)) * ranks
                self._free = (self._make_room(wanted) + wanted) / ranks
                self._full_until = time.monotonic() + FULL if size > self._free else float("-inf")
            if size > self._free:
                return False
            self._free -= size
            return True

    def in_part(self, digests: Sequence[str]) -> tuple[int, int]:
        """Of the files of some artifacts that are read by blocks: bytes that this node has, and bytes of them all."""
        here = size = 0
        for digest in digests:
            manifest = read(self.root / digest).manifest
            size += sum(file.size for file in manifest.files if _has_blocks(manifest, file.path))
            here += _bytes(self.root / (digest + PARTIAL))
        return min(here, size), size

    def _fetch(self, manifest: Manifest, amount: Fetched) -> None:
        folder = self.root / manifest.digest
        with self._lock(f"{manifest.digest}.fetch", fcntl.LOCK_EX):  # several jobs may share a node
            for file in needed(manifest):
                if self._has(folder, file):
                    amount.kept += file.size
                    continue
                self.objects.download(f"artifacts/{manifest.digest}/{file.path}", folder / file.path)
                check_file(folder / file.path, file)
                amount.new += file.size
            Elsewhere(at=f"artifacts/{manifest.digest}").write(folder)
            self.objects.download(f"artifacts/{manifest.digest}/{MANIFEST}", folder / MANIFEST)
            read(folder, digest=manifest.digest)
        for used in (folder, folder.with_name(folder.name + PARTIAL)):
            if used.exists():
                os.utime(used)

    def _has(self, folder: Path, file: FileEntry) -> bool:
        if not (folder / file.path).is_file():
            return False
        try:
            check_file(folder / file.path, file)
        except CorruptArtifactError:
            (folder / file.path).unlink()
            return False
        return True

    def _make_room(self, needed: float) -> float:
        """Remove the entries that were not used for longest until `needed` bytes fit. Returns what is left then,
        negative if they do not fit."""
        entries = sorted(((_used(entry), _bytes(entry), entry) for entry in self._entries()), key=lambda each: each[0])
        left = self.limit - needed - sum(size for _, size, _ in entries)
        for _, size, entry in entries:
            if left >= 0:
                break
            if self._remove(entry):
                left += size
        return left

    def _remove(self, entry: Path) -> bool:
        """Remove an entry, unless a job holds it."""
        if entry.parent.name == RANGES:
            entry.unlink(missing_ok=True)
            return True
        try:
            with self._lock(entry.name, fcntl.LOCK_EX | fcntl.LOCK_NB):
                gone = entry.rename(entry.with_name(f".removed-{entry.name}"))
                shutil.rmtree(gone)
        except BlockingIOError:
            return False
        return True

    def _entries(self) -> list[Path]:
        artifacts = [path for path in self.root.glob("*/") if path.name != RANGES and not path.name.startswith(".")]
        return artifacts + [path for path in (self.root / RANGES).glob("*") if not path.name.startswith(".")]

    def _size(self, digests: Sequence[str]) -> int:
        return sum(_bytes(self.root / digest) for digest in digests)

    @contextmanager
    def _lock(self, name: str, how: int) -> Iterator[None]:
        with (self.root / f".{name}.lock").open("w") as file:
            fcntl.flock(file, how)
            yield


def needed(manifest: Manifest) -> list[FileEntry]:
    """The files of an artifact that a node fetches whole."""
    by_tensor = manifest.kind in ("checkpoint", "adapter", "reward_model")
    return [
        file for file in manifest.files
        if file.path not in NOT_READ
        and not (by_tensor and file.path.endswith(LARGE)) and not _has_blocks(manifest, file.path)
    ]  # fmt: skip


def _has_blocks(manifest: Manifest, path: str) -> bool:
    """Whether a file of an artifact is read by blocks. Artifacts of 0.2.0 have no digests of blocks."""
    return path.endswith(LARGE) and any(file.path == digests_of(path) for file in manifest.files)


def _used(entry: Path) -> float:
    """When an entry was last used."""
    try:
        return entry.stat().st_mtime
    except FileNotFoundError:  # another process removed it
        return 0.0


def _bytes(entry: Path) -> int:
    """Bytes on the disk. Sparse files take less than their size."""
    if entry.is_dir():
        return sum(_bytes(path) for path in entry.rglob("*") if path.is_file())
    try:
        status = entry.stat()
    except FileNotFoundError:
        return 0
    return min(status.st_size, status.st_blocks * 512)
