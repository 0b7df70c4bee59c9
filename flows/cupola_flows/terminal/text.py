"""How numbers are written for people, and text that others wrote: as it stands,
on a terminal and where Markdown is read."""

import re

from rich.console import Console
from rich.style import StyleType
from rich.text import Text

WIDE = 240
"""Columns where nobody's window is known: nothing is cut from what another program reads."""
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal obeys and does not show: control characters but for tab and newline, marks that turn the direction of
writing, and surrogates, which cannot be written at all."""

MARKUP = re.compile(r"[^A-Za-z0-9\u0080-\U0010ffff ]|^ |(?<= ) ")
"""Everything but letters, digits and single spaces; a space where Markdown would count it."""


def number(value: float) -> str:
    """Whole numbers with thousands' commas, others with four digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def stdout() -> Console:
    """Standard output: as wide as the window, or wide where it goes to a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDE)


def visible(text: str) -> str:
    """The text with what a terminal would obey written out: an escape character becomes `\\x1b`."""
    return UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def plain(text: str, style: StyleType = "") -> Text:
    """The text as rich is to print it: no markup, no escape sequence, no matter who wrote it."""
    return Text(visible(text), style=style)


def in_markdown(text: object) -> str:
    """The text for a place that reads Markdown (a console's label, an artifact's description),
    shown character by character.

    Every mark becomes a character reference, which Markdown shows and never obeys: no image, code, formula or colour
    comes of it, not even inside a badge; an address can be clicked, and shows where it leads. Line ends become spaces.
    """
    return MARKUP.sub(lambda mark: f"&#{ord(mark[0])};" if mark[0] not in "\r\n" else " ", str(text))
