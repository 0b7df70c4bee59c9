"""JSON that is not JSON lines: an array of rows, objects over several lines, rows under a key such as "data"."""

import codecs
import json
from collections.abc import Iterable, Iterator
from typing import Any

from cupola_platform.json_lines import BadLineError, Row
from cupola_platform.rows.record import NOT_UTF8, Record, bad, is_message, row_of

WRAPPERS = ("data", "rows", "examples", "instances", "train")
"""Keys that may hold the rows of a file that is one object."""

SPACE = " \t\r\n,"
"""Characters between values. Commas too, since some files have one after the last value."""

FIRST = 1 << 16
"""Characters read at first; the buffer then doubles until it holds a whole value."""


class _Scanner:
    """Reads one value at a time from text that arrives in parts, holding no more than a value and a part."""

    def __init__(self, parts: Iterator[str], bound: int) -> None:
        self._parts, self._bound = parts, bound
        self._text, self._place, self._ended = "", 0, False
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The first character of the next value; empty at the end."""
        while True:
            while self._place < len(self._text) and self._text[self._place] in SPACE:
                self._place += 1
            if self._place < len(self._text) or not self._more(1):
                return self._text[self._place : self._place + 1]

    def skip(self) -> None:
        """Skip the character that `peek` returned."""
        self._place += 1

    def value(self) -> tuple[Any, str]:
        """The next value and its text.

        Raises:
            BadLineError: it is not JSON, or longer than the bound.
        """
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._place)
                if end < len(self._text) or not self._more(1):  # a number may continue in the next part
                    text, self._place = self._text[self._place : end], end
                    return value, text
            except RecursionError:
                raise BadLineError("nested_too_deep", "nested too deep") from None
            except ValueError as error:
                held = len(self._text) - self._place
                if held > self._bound:
                    raise BadLineError("too_long", f"over {self._bound:,} characters without an end") from None
                if not self._more(max(held, FIRST)):
                    raise BadLineError("not_json", f"not JSON ({error})") from None

    def _more(self, size: int) -> bool:
        parts = []
        while size > 0 and (part := next(self._parts, "")):
            parts.append(part)
            size -= len(part)
        if parts:
            self._text, self._place = self._text[self._place :] + "".join(parts), 0
        return bool(parts)


def records(blocks: Iterable[bytes], bound: int) -> Iterator[Record]:
    """The rows of top-level objects and arrays. Reading stops at the first value that is not JSON.

    Args:
        blocks: the file's bytes, without a byte-order mark.
        bound: maximum characters of a value.
    """
    parts = (part for part in codecs.iterdecode(blocks, "utf-8", "surrogateescape") if part)
    number = 0
    try:
        for number, (value, text) in enumerate(_values(_Scanner(parts, bound)), start=1):
            yield _record(number, value, text)
    except BadLineError as error:
        yield bad(number + 1, error.reason, f"{error}; nothing after it is read")


def _values(scanner: _Scanner) -> Iterator[tuple[Any, str]]:
    """Values that may be rows, with their texts."""
    while start := scanner.peek():
        if start == "[":
            scanner.skip()
            yield from _elements(scanner)
            continue
        value, text = scanner.value()
        wrapped = unwrap(value)
        yield from ((row, "") for row in wrapped) if wrapped else [(value, text)]


def _elements(scanner: _Scanner) -> Iterator[tuple[Any, str]]:
    messages: list[Any] = []
    while (start := scanner.peek()) != "]":
        if not start:
            raise BadLineError("cut_short", "the file ends inside an array")
        value, text = scanner.value()
        if is_message(value):
            messages.append(value)
        else:
            yield value, text
    scanner.skip()
    if messages:
        yield messages, ""


def unwrap(value: Any) -> list[Row]:
    """The rows that an object holds under a key; empty if it is a row itself."""
    for name in WRAPPERS:
        rows = value.get(name) if isinstance(value, dict) else None
        if isinstance(rows, list) and rows and all(isinstance(row, dict) and not is_message(row) for row in rows):
            return rows
    return []


def _record(number: int, value: Any, text: str) -> Record:
    size = len(text.encode("utf-8", "surrogateescape"))
    if NOT_UTF8.search(text):
        return bad(number, "not_utf8", "not UTF-8", size=size)
    try:
        return Record(number, row_of(value), size=size)
    except BadLineError as error:
        return bad(number, error.reason, str(error), size=size)
