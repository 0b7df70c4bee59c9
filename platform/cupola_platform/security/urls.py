"""URLs for display, without user, password and keys."""

import re

_AUTHORITY = re.compile(r"([a-z][a-z0-9+.-]*://)[^\s/?#'\"<>]*@", re.IGNORECASE)
_SLASH_IN_PASSWORD = re.compile(r"([a-z][a-z0-9+.-]*://)[^\s/:@'\"<>]*:(?!\d+(?:[/?#]|$))[^\s@'\"<>]*@", re.IGNORECASE)
_KEY = re.compile(
    r"([?&;][\w.-]*(?:pass|pwd|secret|token|key|sig|credential|auth)[\w.-]*=)[^\s&;#'\"<>]+", re.IGNORECASE
)


def shown(text: str) -> str:
    """A text, such as a library's message, with user, password and query keys removed from every URL in it."""
    if "://" not in text:
        return text
    text = _AUTHORITY.sub(r"\1", _SLASH_IN_PASSWORD.sub(r"\1", text))
    return _KEY.sub(r"\1***", text)
