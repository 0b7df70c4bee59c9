"""Rewards of the tests: functions of a row and an answer's text, as a user writes them."""

from typing import Any


def spaces(row: dict[str, Any], answer: str) -> float:
    """The share of spaces."""
    return answer.count(" ") / max(len(answer), 1)


def moody(row: dict[str, Any], answer: str) -> float:
    """Raises on long answers, has no number for those with an e, and likes spaces."""
    if len(answer) > 30:
        raise ValueError("too long for me")
    return float("nan") if "e" in answer else spaces(row, answer)


OVERWHELMING: set[str] = set()
"""Questions whose rewards overflow when they are added up."""


def overwhelming(row: dict[str, Any], answer: str) -> float:
    """The share of spaces, but for some questions."""
    return 1.7e308 if row["messages"][-1]["content"] in OVERWHELMING else spaces(row, answer)
