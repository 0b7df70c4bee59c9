"""Suggestions for misspelt names, for every message that refuses one."""

from collections.abc import Iterable
from difflib import get_close_matches

FINGERPRINTED = False  # words for messages

LISTED = 30
"""Names listed at most when none is close: a longer list hides the message."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?`, or ` Known: a, b.` if no name is close. Empty if no name is known."""
    names = sorted(str(name) for name in known)
    close = get_close_matches(given, names, n=1, cutoff=0.5)
    if close:
        return f" Did you mean {close[0]!r}?"
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f" Known: {', '.join(names[:LISTED])}{more}." if names else ""
