"""Reward functions for tests, written as a user would: functions of a row and a response's text."""

from typing import Any


def spaces(row: dict[str, Any], response: str) -> float:
    """The share of spaces."""
    return response.count(" ") / max(len(response), 1)


def moody(row: dict[str, Any], response: str) -> float:
    """Raises on long responses, is not finite for those with an e, and otherwise rewards spaces."""
    if len(response) > 30:
        raise ValueError("too long for me")
    return float("nan") if "e" in response else spaces(row, response)


OVERWHELMING: set[str] = set()
"""Prompts whose rewards overflow when summed."""


def overwhelming(row: dict[str, Any], response: str) -> float:
    """The share of spaces, except for some prompts."""
    return 1.7e308 if row["messages"][-1]["content"] in OVERWHELMING else spaces(row, response)


def failing(row: dict[str, Any], response: str) -> float:
    """Never gives a score."""
    raise ValueError("not today")


def spaced(row: dict[str, Any], response: str) -> float:
    """Whether there is more than one space."""
    return float(response.count(" ") > 1)


def equal(row: dict[str, Any], response: str) -> float:
    """The same for all."""
    return 1.0
