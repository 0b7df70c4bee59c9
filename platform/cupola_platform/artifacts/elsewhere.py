"""Sealed folders some of whose files are not on this machine, but in the store or still on their way there."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from cupola_platform.durable import write_text

ELSEWHERE = ".elsewhere.json"
"""In such a folder, beside its manifest."""


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """Where the other files are."""

    at: str
    """Name below which the store keeps the files, relative to its top."""
    held: tuple[str, ...] = ()
    """Files that this machine made and sends there."""

    def write(self, folder: Path) -> None:
        write_text(folder / ELSEWHERE, json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """What a folder says; None if all its files are there."""
        try:
            given = json.loads((folder / ELSEWHERE).read_bytes())
        except FileNotFoundError:
            return None
        return cls(at=given["at"], held=tuple(given["held"]))


def absent(folder: Path, paths: Sequence[str]) -> list[str]:
    """Those of a folder's files that are not on this machine."""
    return [path for path in paths if not (folder / path).is_file()]
