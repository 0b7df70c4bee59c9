"""How numbers are written for people, and how wide."""

from rich.console import Console

WIDE = 240
"""Columns where nobody's window is known: nothing is cut from what another program reads."""


def number(value: float) -> str:
    """Whole numbers with thousands' commas, others with four digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def stdout() -> Console:
    """Standard output: as wide as the window, or wide where it goes to a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDE)
