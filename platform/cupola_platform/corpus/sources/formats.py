"""Files of text and of rows, read one document at a time in bounded memory."""

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from cupola_platform.corpus.core.chat_documents import render
from cupola_platform.corpus.core.documents import EXCERPT
from cupola_platform.corpus.sources.markup import html_to_text, main_text, man_to_text
from cupola_platform.corpus.sources.notebook import notebook_to_text
from cupola_platform.rows import reading
from cupola_platform.rows.opening import COMPRESSIONS, UNREADABLE, open_plain

BROKEN_UTF8 = "broken UTF-8"
TRUNCATED = "truncated or corrupt file"
TOO_LONG = "longer than max_document_bytes"
MALFORMED = "malformed row"
NO_TEXT = "no text field"

REASONS = {
    "not_utf8": BROKEN_UTF8, "lone_surrogate": BROKEN_UTF8, "too_long": TOO_LONG, "cut_short": TRUNCATED,
    "not_an_object": NO_TEXT, "unknown_format": "unknown format",
}  # fmt: skip
"""The report's names of the reasons why a row cannot be used; any other is a malformed row."""

MARKUP = 8
"""How many times longer than its text a document's raw form may be (tags, JSON escapes)."""


class Row(NamedTuple):
    """One document of a file, or the reason why it cannot be used."""

    number: int
    """0 in a file of one document; from 1 in a file of rows."""

    text: str | None
    size: int
    """Bytes of the text in UTF-8, or of the refused data."""

    reason: str = ""
    detail: str = ""

    begin: int = 0
    """Offset of its first byte in the decompressed file (for WARC, of its record); `end` is the offset after its
    last."""

    end: int = 0


@dataclass(frozen=True)
class Limits:
    """Options of a reader."""

    text_field: str
    document_bytes: int
    whole_pages: bool = False
    """Read all text of a page, not only its main text."""
    messages_field: str | None = None
    """The column with conversations; None to read texts."""

    @property
    def column(self) -> str:
        return self.messages_field or self.text_field


Reader = Callable[[BinaryIO, Limits], Iterator[Row]]


def format_of(name: str) -> str | None:
    """The format by a file's name (`text`, `rows`, ...), or None if it is not supported."""
    suffix = reading.suffix_of(name)
    path = PurePosixPath(name)
    inner = path.stem if path.suffix.lower() in COMPRESSIONS else path.name
    return SUFFIXES.get(suffix) or ("man" if _SECTION.fullmatch(inner) else None)


def read_rows(path: Path, name: str, limits: Limits) -> Iterator[Row]:
    """The documents of one local file whose original name is `name`. A damaged file ends in a refused row."""
    format_name = format_of(name)
    if format_name is None:
        raise ValueError(f"{name} has no known format")
    if format_name == "rows":
        yield from _read_table(path, name, limits)
        return
    number = 0
    with closing(open_plain(path)) as stream:
        try:
            for row in READERS[format_name](stream, limits):
                number = row.number
                yield row
        except UNREADABLE as error:
            detail = " ".join(str(error).split())[:EXCERPT]
            yield Row(number + 1 if number else 0, None, 0, TRUNCATED, detail)


def _read_table(path: Path, name: str, limits: Limits) -> Iterator[Row]:
    bound = MARKUP * limits.document_bytes
    columns = (limits.column, "tools") if limits.messages_field else (limits.column,)
    for record in reading.read(path, name, columns=columns, bound=bound):
        if record.row is None:
            yield Row(record.number, None, record.size, REASONS.get(record.reason, MALFORMED), record.detail)
        else:
            row = row_of(record.number, record.row, record.size, limits)
            yield row._replace(begin=record.begin, end=record.end)


def admit(number: int, text: str, limits: Limits) -> Row:
    """A row with the text, or a refused row if no step should see it."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return Row(number, None, len(text), BROKEN_UTF8, "lone surrogate")
    if size > limits.document_bytes:
        return Row(number, None, size, TOO_LONG, f"{size:,} bytes")
    if "\0" in text:
        return Row(number, None, size, "NUL bytes", f"at character {text.index(chr(0)):,}")
    if not text.strip():
        return Row(number, None, size, "empty")
    return Row(number, text, size)


def row_of(number: int, row: Any, size: int, limits: Limits) -> Row:
    """A row of a table: its text, or why it has none, in which case `size` counts as its bytes."""
    value = row.get(limits.column) if isinstance(row, dict) else None
    if limits.messages_field and value is not None:
        text, reason = render(value, row.get("tools"))
        return admit(number, text, limits) if text else Row(number, None, size, reason, str(value)[:EXCERPT])
    if not isinstance(value, str):
        has = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        return Row(number, None, size, NO_TEXT, f"wanted {limits.column!r}, has {has}"[:EXCERPT])
    return admit(number, value, limits)


def _decode(number: int, data: bytes) -> str | Row:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Row(number, None, len(data), BROKEN_UTF8, f"at byte {error.start:,}")


def _read_all(stream: BinaryIO, bound: int) -> str | Row:
    data = stream.read(bound + 1)
    if len(data) > bound:
        size = len(data)
        while more := stream.read(1 << 20):
            size += len(more)
        return Row(0, None, size, TOO_LONG, f"{size:,} bytes")
    return _decode(0, data)


def _read_plain(stream: BinaryIO, limits: Limits) -> Iterator[Row]:
    text = _read_all(stream, limits.document_bytes)
    yield text if isinstance(text, Row) else admit(0, text, limits)


def _read_html(stream: BinaryIO, limits: Limits) -> Iterator[Row]:
    markup = _read_all(stream, MARKUP * limits.document_bytes)
    yield markup if isinstance(markup, Row) else admit(0, _page(markup, limits), limits)


def _page(markup: str, limits: Limits) -> str:
    return html_to_text(markup) if limits.whole_pages else main_text(markup)


def _read_man(stream: BinaryIO, limits: Limits) -> Iterator[Row]:
    source = _read_all(stream, MARKUP * limits.document_bytes)
    yield source if isinstance(source, Row) else admit(0, man_to_text(source), limits)


def _read_notebook(stream: BinaryIO, limits: Limits) -> Iterator[Row]:
    source = _read_all(stream, MARKUP * limits.document_bytes)
    if isinstance(source, Row):
        yield source
    elif (text := notebook_to_text(source)) is None:
        yield Row(0, None, len(source), MALFORMED, "no notebook")
    else:
        yield admit(0, text, limits)


def _read_warc(stream: BinaryIO, limits: Limits) -> Iterator[Row]:
    """The pages of a web archive; other records (requests, images, errors) are skipped."""
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    records = ArchiveIterator(stream)
    number = seen = 0
    try:
        for seen, record in enumerate(records, start=1):
            headers = record.http_headers
            kind = headers.get_header("Content-Type", "") if headers else ""
            if record.rec_type != "response" or "html" not in kind or headers.get_statuscode() != "200":
                continue
            number += 1
            data = record.content_stream().read(MARKUP * limits.document_bytes + 1)
            begin, length = records.get_record_offset(), records.get_record_length()  # reads the rest of the record
            if record.raw_stream.limit > 0:
                raise EOFError(f"record {seen} is cut short")
            yield _web_page(number, data, kind, limits)._replace(begin=begin, end=begin + length)
        if not seen:
            raise EOFError("no whole record")
    except ArchiveLoadFailed as error:
        raise ValueError(str(error)) from error


def _web_page(number: int, data: bytes, kind: str, limits: Limits) -> Row:
    if len(data) > MARKUP * limits.document_bytes:
        return Row(number, None, len(data), TOO_LONG, f"over {len(data) - 1:,} bytes")
    charset = re.search(r"charset=[\"']?([\w-]+)", kind) or re.search(rb"charset=[\"']?([\w-]+)", data[:2048])
    name = charset[1] if charset else "utf-8"
    try:
        markup = data.decode(name if isinstance(name, str) else name.decode())
    except (UnicodeDecodeError, LookupError) as error:
        return Row(number, None, len(data), BROKEN_UTF8, str(error)[:EXCERPT])
    return admit(number, _page(markup, limits), limits)


SUFFIXES = {
    ".txt": "text", ".md": "text", ".rst": "text", ".py": "text",
    ".html": "html", ".htm": "html", ".warc": "warc", ".man": "man", ".ipynb": "notebook",
    **dict.fromkeys(reading.FORMATS, "rows"),
}  # fmt: skip
READERS: dict[str, Reader] = {
    "text": _read_plain, "html": _read_html, "warc": _read_warc, "man": _read_man, "notebook": _read_notebook,
}  # fmt: skip
_SECTION = re.compile(r"(?!.*\.so\.)[^.].*\.[1-9][a-z]{0,8}")
"""File names of man pages: `ls.1`, `printf.3posix`."""

KNOWN = f"{' '.join(sorted(SUFFIXES))} .1 to .9, each also with {' '.join(COMPRESSIONS)}"
