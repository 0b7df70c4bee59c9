"""One row of a file, or why it cannot be used."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from cupola_platform.json_lines import Row, check_row

NOT_UTF8 = re.compile("[\udc80-\udcff]")
"""Bytes that are not UTF-8, as decoded by the error handler "surrogateescape"."""

EXCERPT = 160
"""Maximum characters of a detail."""


class Record(NamedTuple):
    """A row of a file, or the reason it cannot be used."""

    number: int
    """Line number if the file has lines, else row number, from 1. 0 means that the whole file cannot be used."""

    row: Row | None
    reason: str = ""
    """Key to count it by: one of `json_lines.BadLineError`'s, or "too_long", "cut_short" (a damaged file, whose
    remainder is lost), "unknown_format", "not_csv", "too_many_cells"."""

    detail: str = ""
    size: int = 0
    """Bytes of the row in the decompressed file; 0 in columnar formats."""

    begin: int = 0
    """Offset of its first byte in the decompressed file; `end` is the offset after its last. Both 0 if unknown."""

    end: int = 0
    unit: str = "row"
    """What `number` counts: "line" or "row"."""

    def where(self, file: str) -> str:
        """The file and the line or row in it, for messages."""
        return f"{file}, {self.unit} {self.number:,}" if self.number else file


def bad(number: int, reason: str, detail: str, **more: Any) -> Record:
    """A record that is not a row."""
    return Record(number, None, reason, " ".join(detail.split())[:EXCERPT], **more)


def row_of(value: Any) -> Row:
    """A JSON value as a row. It may be an object or a bare list of messages.

    Raises:
        BadLineError: as `json_lines.check_row`.
    """
    if isinstance(value, list) and value and all(map(is_message, value)):
        value = {"messages": value}
    return check_row(value)


def is_message(value: Any) -> bool:
    """Whether a JSON value is a message of a conversation rather than a row."""
    if not isinstance(value, Mapping) or not ("role" in value or "from" in value):
        return False
    return any(name in value for name in ("content", "value", "parts", "tool_calls"))
