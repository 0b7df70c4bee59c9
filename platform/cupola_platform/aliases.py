"""The rule of names that people give to artifacts."""

import re

from cupola_platform.errors import ConfigError

FINGERPRINTED = False  # names artifacts

_NAME = re.compile(r"[a-z][a-z0-9._-]{0,63}")
_LIKE_AN_ID = re.compile(r"[0-9a-f]{6,}")


def fault(name: str) -> str | None:
    """What is wrong with an alias; none where it is right."""
    if not _NAME.fullmatch(name):
        return f"Alias {name!r} must be lower-case letters, digits, '.', '_' or '-', and begin with a letter."
    if _LIKE_AN_ID.fullmatch(name):
        return (
            f"Alias {name!r} is spelt like an id (6 or more of 0-9 and a-f). Give it another letter, as {name}-model."
        )
    return None


def check_alias(name: str | None) -> None:
    """Refuse a name that breaks the rule, before anything is made for it.

    Raises:
        ConfigError: the name given, the rule, the next move.
    """
    if name is not None and (wrong := fault(name)):
        raise ConfigError(wrong)
