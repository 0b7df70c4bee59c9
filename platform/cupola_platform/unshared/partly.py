"""Reading a sealed folder some of whose files may be only in the store: by whole file, or by range."""

import fnmatch
import threading
import time
from functools import cache as once
from pathlib import Path

from blake3 import blake3

from cupola_platform.artifacts import Artifact, read
from cupola_platform.artifacts.elsewhere import Elsewhere
from cupola_platform.errors import ConfigError, CorruptArtifactError, NotFoundError
from cupola_platform.unshared.cache import Cache
from cupola_platform.unshared.contract import CACHE_FOLDER, GIB, read_contract

PATIENCE = 600.0
"""Seconds for another node to upload its part of a checkpoint."""
POLL = 1.0
_COUNTING = threading.Lock()


class Partly:
    """The files of a sealed folder. Where all are on this machine, the store is not asked."""

    fetched = 0
    """Bytes that this process fetched, of all folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._elsewhere = Elsewhere.read(folder)
        self._artifact: Artifact | None = read(folder) if self._elsewhere else None

    def names(self, pattern: str) -> list[str]:
        """Paths of the files that match a pattern such as `state/rank_*.json`, sorted."""
        if self._artifact:
            return sorted(fnmatch.filter((file.path for file in self._artifact.manifest.files), pattern))
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.glob(pattern))

    def is_here(self, path: str) -> bool:
        """Whether a file is on this machine."""
        return (self.folder / path).is_file()

    def content(self, path: str) -> bytes:
        """A whole small file.

        Raises:
            CorruptArtifactError: it is not what the manifest says, or no node uploads it.
        """
        if self.is_here(path) or self._artifact is None:
            return (self.folder / path).read_bytes()
        entry = next(file for file in self._artifact.manifest.files if file.path == path)
        return self.range(path, 0, entry.size, entry.blake3)

    def range(self, path: str, first: int, count: int, digest: str) -> bytes:
        """`count` bytes of a file that is not on this machine, from `first` on.

        Args:
            digest: BLAKE3 of these bytes, in hex.

        Raises:
            CorruptArtifactError: they have another digest, or no node uploads them.
            ConfigError: there is no digest.
        """
        assert self._elsewhere
        if not digest:
            raise ConfigError(
                f"{self.folder.name} was saved by a version whose checkpoints have no digest for each tensor, so its "
                "parts cannot be fetched alone. Use a cluster with a shared folder, or make the checkpoint again."
            )
        name = f"{self._elsewhere.at}/{path}"

        def fetch() -> bytes:
            content = _patiently(name, first, count)
            if blake3(content).hexdigest() != digest:
                raise CorruptArtifactError(f"{name} was changed in the store: bytes {first} to {first + count}.")
            with _COUNTING:
                Partly.fetched += count
            return content

        return node_cache().range(digest, fetch)


def _patiently(name: str, first: int, count: int) -> bytes:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return node_cache().objects.read(name, first, count)
        except NotFoundError as error:
            if time.monotonic() > until:
                raise CorruptArtifactError(f"{error} No node has uploaded it for {PATIENCE:.0f} s.") from None
        time.sleep(POLL)


@once
def node_cache() -> Cache:
    """This process's connection to the store and to its node's disk."""
    contract = read_contract()
    if contract is None:
        raise CorruptArtifactError("Files of a checkpoint are missing here. Fetch it again: cupola artifacts.")
    return Cache(contract.home / CACHE_FOLDER, contract.cache_gib * GIB, contract.top())
