"""One row of a file, or why it is none."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from cupola_platform.json_lines import Row, check_row

NOT_UTF8 = re.compile("[\udc80-\udcff]")
"""What bytes that are no UTF-8 become under the error handler "surrogateescape"."""

EXCERPT = 160
"""Characters of a detail."""


class Record(NamedTuple):
    """A row of a file, or the reason why it cannot be used."""

    number: int
    """Counts from 1: lines where the file has lines, else rows. 0 says that the whole file cannot be used."""

    row: Row | None
    reason: str = ""
    """A word to count it under: one of `json_lines.BadLineError`, or "too_long", "cut_short" (a damaged file: what
    comes after is lost), "unknown_format", "not_csv", "too_many_cells"."""

    detail: str = ""
    size: int = 0
    """Bytes that the row takes in the file, decompressed; 0 in a table of columns."""

    begin: int = 0
    """Where its bytes begin in the file (decompressed), and where they end; both 0 where that is not known."""

    end: int = 0
    unit: str = "row"
    """What `number` counts: "line" or "row"."""

    def where(self, file: str) -> str:
        """A name for people: the file, and the line or row in it."""
        return f"{file}, {self.unit} {self.number:,}" if self.number else file


def bad(number: int, reason: str, detail: str, **more: Any) -> Record:
    """A record that is no row."""
    return Record(number, None, reason, " ".join(detail.split())[:EXCERPT], **more)


def row_of(value: Any) -> Row:
    """A JSON value as a row: an object, or a bare list of messages.

    Raises:
        BadLineError: as `json_lines.check_row`.
    """
    if isinstance(value, list) and value and all(map(is_message, value)):
        value = {"messages": value}
    return check_row(value)


def is_message(value: Any) -> bool:
    """Whether a JSON value is one message of a conversation, and no row."""
    if not isinstance(value, Mapping) or not ("role" in value or "from" in value):
        return False
    return any(name in value for name in ("content", "value", "parts", "tool_calls"))
