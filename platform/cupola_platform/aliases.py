"""The rule for aliases, the names that people give to artifacts."""

import re

from cupola_platform.errors import ConfigError

FINGERPRINTED = False  # names artifacts

_NAME = re.compile(r"[a-z][a-z0-9._-]{0,63}")
_LIKE_AN_ID = re.compile(r"[0-9a-f]{6,}")


def fault(name: str) -> str | None:
    """What is wrong with an alias, or None if it is valid."""
    if not _NAME.fullmatch(name):
        return f"Alias {name!r} must start with a letter and contain only lower-case letters, digits, '.', '_' and '-'."
    if _LIKE_AN_ID.fullmatch(name):
        return f"Alias {name!r} looks like an id (6 or more of 0-9 and a-f). Add another letter, as in {name}-model."
    return None


def check_alias(name: str | None) -> None:
    """Refuse an invalid alias, before any work is done for it.

    Raises:
        ConfigError: the alias is invalid.
    """
    if name is not None and (wrong := fault(name)):
        raise ConfigError(wrong)
