"""A record of each file read: the leaves of every lineage."""

from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from cupola_platform.errors import SourceError

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A line of `sources.jsonl`."""

    source: str
    path: str
    bytes: int
    blake3: str


def record_file(source: str, label: str, path: Path) -> SourceFile:
    """Size and digest of a local file, under the name `label`. Raises SourceError if it cannot be read."""
    try:
        digest, size = blake3(), 0
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):  # a memory-mapped file would count as the process's memory
                digest.update(block)
                size += len(block)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from error
    return SourceFile(source, label, size, digest.hexdigest())
