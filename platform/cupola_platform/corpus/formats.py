"""Files of text and of rows, read one document at a time in bounded memory."""

import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, cast

from cupola_platform.corpus.chat import render
from cupola_platform.corpus.documents import EXCERPT
from cupola_platform.corpus.markup import html_to_text, main_text, man_to_text

BROKEN_UTF8 = "broken UTF-8"
TRUNCATED = "truncated or corrupt file"
TOO_LONG = "longer than max_document_bytes"
MALFORMED = "malformed row"
NO_TEXT = "no text field"

MARKUP = 8
"""How much longer than its text the raw form of a document may be (tags, JSON escapes)."""


class Row(NamedTuple):
    """One document of a file, or the reason why it is none."""

    number: int
    """Counts from 0 in a file of one document, from 1 in a file of rows."""

    text: str | None
    size: int
    """Bytes of the text in UTF-8, or of what was refused."""

    reason: str = ""
    detail: str = ""

    begin: int = 0
    """Where its bytes begin in the file (decompressed; of a WARC, its record), and where they end."""

    end: int = 0


@dataclass(frozen=True)
class Limits:
    """What a reader needs to know besides the file."""

    text_field: str
    document_bytes: int
    whole_pages: bool = False
    """All text of a page rather than its main text."""
    messages_field: str | None = None
    """The column of conversations; none for that of texts."""

    @property
    def column(self) -> str:
        return self.messages_field or self.text_field


Reader = Callable[[BinaryIO, Limits], Iterator[Row]]


def format_of(name: str) -> str | None:
    """The format that a file's name says (`jsonl`, ...), or None when it is not one we read."""
    path = PurePosixPath(name)
    compressed = path.suffix.lower() in COMPRESSIONS
    if compressed:
        path = PurePosixPath(path.stem)
    inner = SUFFIXES.get(path.suffix.lower()) or ("man" if _SECTION.fullmatch(path.name) else None)
    return None if compressed and inner == "parquet" else inner


def read_rows(path: Path, name: str, limits: Limits) -> Iterator[Row]:
    """The documents of one local file whose original name was `name`. A damaged file ends in a refused row."""
    format_name = format_of(name)
    if format_name is None:
        raise ValueError(f"{name} has no known format")
    number = 0
    try:
        with path.open("rb") as raw, _decompressed(raw, name) as stream:
            for row in READERS[format_name](stream, limits):
                number = row.number
                yield row
    except (EOFError, OSError, zlib.error, ValueError) as error:
        detail = " ".join(str(error).split())[:EXCERPT]
        yield Row(number + 1 if number else 0, None, 0, TRUNCATED, detail)


def admit(number: int, text: str, limits: Limits) -> Row:
    """A row with the text, unless it is one that no step should see."""
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
    """A row of a table: its text, or why it has none. `size` is what is booked when it has none."""
    found = row.get(limits.column) if isinstance(row, dict) else None
    if limits.messages_field and found is not None:
        text, reason = render(found)
        return admit(number, text, limits) if text else Row(number, None, size, reason, str(found)[:EXCERPT])
    if not isinstance(found, str):
        has = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        return Row(number, None, size, NO_TEXT, f"wanted {limits.column!r}, has {has}"[:EXCERPT])
    return admit(number, found, limits)


def _decompressed(raw: BinaryIO, name: str) -> BinaryIO:
    compression = COMPRESSIONS.get(PurePosixPath(name).suffix.lower())
    if compression == "gzip":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if compression == "zstd":
        import pyarrow  # the one decoder at hand that raises on a truncated frame

        return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))
    return raw


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


def _read_warc(stream: BinaryIO, limits: Limits) -> Iterator[Row]:
    """The pages of a web archive; other records (requests, images, errors) are not documents."""
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


def _read_jsonl(stream: BinaryIO, limits: Limits) -> Iterator[Row]:
    bound = MARKUP * limits.document_bytes
    number = end = 0
    while line := stream.readline(bound + 1):
        number += 1
        begin, end = end, end + len(line)
        if len(line) > bound and not line.endswith(b"\n"):
            while (more := stream.readline(1 << 20)) and not more.endswith(b"\n"):
                end += len(more)
            end += len(more)
            yield Row(number, None, end - begin, TOO_LONG, f"{end - begin:,} bytes", begin, end)
        elif line.strip():
            yield _json_row(number, line, limits)._replace(begin=begin, end=end)


def _json_row(number: int, line: bytes, limits: Limits) -> Row:
    decoded = _decode(number, line)
    if isinstance(decoded, Row):
        return decoded
    try:
        row = json.loads(decoded)
    except (ValueError, RecursionError):
        return Row(number, None, len(line), MALFORMED, " ".join(decoded.split())[:EXCERPT])
    return row_of(number, row, len(line), limits)


def _read_parquet(stream: BinaryIO, limits: Limits) -> Iterator[Row]:
    from pyarrow import ArrowException, parquet

    try:
        table = parquet.ParquetFile(stream)
        names = table.schema_arrow.names
        columns = [limits.column] if limits.column in names else []
        number = 0
        if not columns:
            detail = f"wanted {limits.column!r}, has {', '.join(names)}"[:EXCERPT]
            for number in range(1, table.metadata.num_rows + 1):
                yield Row(number, None, 0, NO_TEXT, detail)
            return
        for batch in table.iter_batches(batch_size=256, columns=columns):
            for value in batch.column(0).to_pylist():
                number += 1
                yield row_of(number, {limits.column: value}, 0, limits)
    except ArrowException as error:
        raise ValueError(str(error)) from error


COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
SUFFIXES = {
    ".txt": "text", ".md": "text", ".rst": "text", ".py": "text",
    ".html": "html", ".htm": "html", ".jsonl": "jsonl", ".parquet": "parquet", ".warc": "warc", ".man": "man",
}  # fmt: skip
READERS: dict[str, Reader] = {
    "text": _read_plain, "html": _read_html, "jsonl": _read_jsonl, "parquet": _read_parquet, "warc": _read_warc, "man": _read_man,
}  # fmt: skip
_SECTION = re.compile(r"(?!.*\.so\.)[^.].*\.[1-9][a-z]{0,8}")
"""A manual's name: `ls.1`, `printf.3posix`."""

KNOWN = " ".join(sorted(SUFFIXES)) + " .1 to .9 (all but .parquet also with " + " or ".join(sorted(COMPRESSIONS)) + ")"
