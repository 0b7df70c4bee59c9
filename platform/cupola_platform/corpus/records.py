"""A record of each file that was read: the leaves of every lineage."""

from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from cupola_platform.errors import SourceError


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A line of `sources.jsonl`."""

    source: str
    path: str
    bytes: int
    blake3: str


def record_file(source: str, label: str, path: Path) -> SourceFile:
    """Size and digest of a local file, under the name `label`. Raises SourceError when it cannot be read."""
    try:
        size = path.stat().st_size
        digest = blake3().update_mmap(path) if size else blake3()
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from error
    return SourceFile(source, label, size, digest.hexdigest())
