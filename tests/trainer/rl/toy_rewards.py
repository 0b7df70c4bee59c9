"""Rewards of the tests: functions of a row and a response's text, as a user writes them."""

from typing import Any


def spaces(row: dict[str, Any], response: str) -> float:
    """The share of spaces."""
    return response.count(" ") / max(len(response), 1)


def moody(row: dict[str, Any], response: str) -> float:
    """Raises on long responses, has no number for those with an e, and likes spaces."""
    if len(response) > 30:
        raise ValueError("too long for me")
    return float("nan") if "e" in response else spaces(row, response)


OVERWHELMING: set[str] = set()
"""Prompts whose rewards overflow when they are added up."""


def overwhelming(row: dict[str, Any], response: str) -> float:
    """The share of spaces, but for some prompts."""
    return 1.7e308 if row["messages"][-1]["content"] in OVERWHELMING else spaces(row, response)
