"""An untrusted model folder: only regular files inside it are read."""

import json
import os
import stat
from pathlib import Path
from typing import Any

from cupola_platform.errors import ConfigError, NotFoundError

DEEPEST = 32
"""Maximum nesting depth of a JSON file; transformers' own have six levels."""


class ModelFolder:
    """Finds files of a transformers folder by name.

    Links are followed only within the folder. In Hugging Face's cache, where a snapshot's files link to `blobs` next to
    it, the folder is the whole `models--ORG--NAME`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        real = Path(os.path.realpath(path))
        cached = real.parent.name == "snapshots" and real.parents[1].name.startswith("models--")
        self._within = real.parents[1] if cached else real

    def file(self, name: str) -> Path | None:
        """The resolved path of a file; None if it does not exist.

        Raises:
            ConfigError: a link, `..` or an absolute name leads outside the folder, or it is not a regular file.
        """
        path = self.path / name
        try:
            real = Path(os.path.realpath(path))
            if not real.is_relative_to(self._within):
                raise ConfigError(
                    f"{shown(path)} leads outside the folder, to {shown(real)}. "
                    "Put the file itself in the folder, if you trust it."
                )
            if not os.path.lexists(real):
                return None
            plain = stat.S_ISREG(real.stat().st_mode)
        except (OSError, ValueError) as error:  # an impossible file name
            raise ConfigError(f"{shown(path)} cannot be opened: {error}. Copy the folder again.") from None
        if not plain:
            raise ConfigError(f"{shown(path)} is not a regular file. Copy the folder again.")
        return real

    def json(self, name: str) -> dict[str, Any]:
        """Read a JSON file that holds an object.

        Raises:
            NotFoundError: the file does not exist.
            ConfigError: it does not hold a JSON object, or leads outside the folder.
        """
        path, real = self.path / name, self.file(name)
        if real is None:
            raise NotFoundError(f"{self.path} holds no {name}. Give a folder written by transformers' save_pretrained.")
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
    """An untrusted name made safe for a message: one line, without terminal control characters."""
    text = str(name)
    return text if text.isprintable() else repr(text)


def _is_deep(value: Any) -> bool:
    """Whether a value is nested too deeply for recursive functions."""
    level = [value]
    for _ in range(DEEPEST):
        level = [part for each in level for part in _parts(each)]
    return bool(level)


def _parts(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
