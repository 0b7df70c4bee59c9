"""A model folder that somebody else made: nothing outside it is read, and nothing in it but plain files."""

import json
import os
import stat
from pathlib import Path
from typing import Any

from cupola_platform.errors import ConfigError, NotFoundError

DEEPEST = 32
"""Levels of nesting of a JSON file, at most; transformers' own have six."""


class ModelFolder:
    """Finds files of a transformers folder by name.

    Links are followed within the folder only. In Hugging Face's cache, where a snapshot's files are links to `blobs`
    beside it, the folder is the whole `models--ORG--NAME`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        real = Path(os.path.realpath(path))
        cached = real.parent.name == "snapshots" and real.parents[1].name.startswith("models--")
        self._within = real.parents[1] if cached else real

    def file(self, name: str) -> Path | None:
        """Where a file really lies; none where there is no such file.

        Raises:
            ConfigError: a link, `..` or an absolute name leads out of the folder, or it is not a plain file.
        """
        path = self.path / name
        try:
            real = Path(os.path.realpath(path))
            if not real.is_relative_to(self._within):
                raise ConfigError(
                    f"{shown(path)} leads out of the folder, to {shown(real)}. "
                    "Put the file itself there, if you trust it."
                )
            if not os.path.lexists(real):
                return None
            plain = stat.S_ISREG(real.stat().st_mode)
        except (OSError, ValueError) as error:  # a name that no file can have
            raise ConfigError(f"{shown(path)} cannot be opened: {error}. Copy the folder again.") from None
        if not plain:
            raise ConfigError(f"{shown(path)} is not a plain file. Copy the folder again.")
        return real

    def json(self, name: str) -> dict[str, Any]:
        """What a JSON file holds, an object.

        Raises:
            NotFoundError: there is no such file.
            ConfigError: it holds something else, or leads out of the folder.
        """
        path, real = self.path / name, self.file(name)
        if real is None:
            raise NotFoundError(f"{self.path} holds no {name}. Give a folder that transformers' save_pretrained wrote.")
        try:
            value = json.loads(real.read_bytes())
            if _is_deep(value):
                raise RecursionError
        except ValueError as error:
            raise ConfigError(f"{path} is not JSON: {error}. Copy it again.") from error
        except RecursionError:
            raise ConfigError(f"{path} is nested deeper than {DEEPEST} levels. Copy it again.") from None
        if not isinstance(value, dict):
            raise ConfigError(f"{path} holds no JSON object. Copy it again.")
        return value


def shown(name: object) -> str:
    """A stranger's name as a message may show it: on one line, and nothing that a terminal obeys."""
    text = str(name)
    return text if text.isprintable() else repr(text)


def _is_deep(value: Any) -> bool:
    """Whether it is nested deeper than what is read on by functions that call themselves."""
    level = [value]
    for _ in range(DEEPEST):
        level = [part for each in level for part in _parts(each)]
    return bool(level)


def _parts(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
