"""Formatting of numbers, and escaping of untrusted text for terminals and Markdown."""

import re

from rich.console import Console
from rich.style import StyleType
from rich.text import Text

WIDE = 240
"""Columns when the output is not a terminal, wide enough not to truncate what another program reads."""
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that a terminal interprets instead of showing: control characters other than tab and newline, marks that
change the writing direction, and surrogates, which cannot be encoded."""

MARKUP = re.compile(r"[^A-Za-z0-9\u0080-\U0010ffff ]|^ |(?<= ) ")
"""Everything but letters, digits and single spaces; leading and repeated spaces too, which Markdown interprets."""


def number(value: float) -> str:
    """Format whole numbers with thousands separators, others with four significant digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def stdout() -> Console:
    """A console for standard output: as wide as the terminal, or `WIDE` columns for a file or pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDE)


def visible(text: str) -> str:
    """The text with control characters escaped: ESC becomes `\\x1b`."""
    return UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def plain(text: str, style: StyleType = "") -> Text:
    """Untrusted text for rich, without markup or escape sequences."""
    return Text(visible(text), style=style)


def in_markdown(text: object) -> str:
    """Untrusted text escaped for Markdown, such as a console label or an artifact's description.

    Every punctuation mark becomes a character reference, so no image, code, formula or colour results, not even inside
    a badge. A URL can still be clicked, and shows where it leads. Line ends become spaces.
    """
    return MARKUP.sub(lambda mark: f"&#{ord(mark[0])};" if mark[0] not in "\r\n" else " ", str(text))
