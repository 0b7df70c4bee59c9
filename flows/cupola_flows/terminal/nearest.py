"""The nearest right word to a misspelt one."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?`, or the whole list where nothing is near; empty when nothing is known."""
    names = [str(name) for name in known]
    near = get_close_matches(given, names, n=1, cutoff=0.5)
    if near:
        return f" Did you mean {near[0]!r}?"
    return f" Known: {', '.join(sorted(names))}." if names else ""
