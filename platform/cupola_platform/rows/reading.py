"""The rows of one file in any supported format."""

import io
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from cupola_platform.errors import refusal
from cupola_platform.json_lines import BYTE_ORDER_MARK, BadLineError, parse_value
from cupola_platform.rows import json_values, tables
from cupola_platform.rows.opening import COMPRESSIONS, HEAD_BYTES, UNREADABLE, head, is_compressed, open_plain
from cupola_platform.rows.record import Record, bad, row_of

ROW_BYTES = 64 << 20
"""The longest row, in bytes; longer ones are dropped as "too_long"."""

FORMATS = {
    ".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".tab": "csv",
    ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow",
}  # fmt: skip
"""Formats by suffix."""

LINES = (".jsonl", ".ndjson")

KNOWN = f"{' '.join(sorted(FORMATS))}, each also with {' '.join(COMPRESSIONS)}"

Columns = Collection[str] | None


class Line(NamedTuple):
    """A non-blank line of a file."""

    number: int
    data: bytes
    """Without byte-order mark and line end; empty if it is longer than the bound."""
    raw: bytes
    begin: int
    end: int


def suffix_of(name: str) -> str:
    """A file name's suffix, without that of its compression."""
    path = PurePosixPath(name)
    return (PurePosixPath(path.stem) if path.suffix.lower() in COMPRESSIONS else path).suffix.lower()


def read(path: Path, name: str | None = None, *, columns: Columns = None, bound: int = ROW_BYTES) -> Iterator[Record]:
    """Every row of a file, in order, in constant memory.

    Args:
        name: the file's name before it was fetched; None for its own name.
        columns: the columns to read of Parquet and Arrow files; None for all.
        bound: maximum bytes of a line or cell. Longer elements of an array are still parsed, up to `ROW_BYTES`, to find
            what comes after them.

    Raises:
        OSError: the file cannot be opened.
    """
    number, unit = 0, "row"
    with closing(open_plain(path)) as stream:
        try:
            for record in _records(stream, path, suffix_of(name or path.name), columns, bound):
                number, unit = record.number, record.unit
                yield record
        except UNREADABLE as error:
            if isinstance(error, OSError) and refusal(error):
                raise
            yield bad(number + 1 if number else 0, "cut_short", f"{error}" or type(error).__name__, unit=unit)


def _records(stream: io.BufferedReader, path: Path, suffix: str, columns: Columns, bound: int) -> Iterator[Record]:
    start = head(stream)
    if start.startswith(b"PAR1"):
        return _seekable(stream, path, lambda file: tables.parquet_records(file, columns))
    if start.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return _seekable(stream, path, lambda file: tables.arrow_records(file, columns))
    if start.startswith(b"version https://git-lfs"):
        detail = "a Git LFS pointer instead of the file: run `git lfs pull`"
        return iter([bad(0, "unknown_format", detail)])
    if b"\0" in start[:1024]:
        return iter([bad(0, "unknown_format", f"it begins with {start[:8]!r}, like none of {KNOWN}")])
    return _text_records(stream, suffix, bound)


def _seekable(stream: BinaryIO, path: Path, records: Callable[[BinaryIO], Iterator[Record]]) -> Iterator[Record]:
    """Records of a format that needs seeking: a compressed file is first unpacked to disk."""
    if not is_compressed(path):
        with path.open("rb") as file:
            yield from records(file)
        return
    with tempfile.TemporaryFile() as file:
        while block := stream.read(1 << 20):
            file.write(block)
        file.seek(0)
        yield from records(file)


def _text_records(stream: io.BufferedReader, suffix: str, bound: int) -> Iterator[Record]:
    if head(stream).removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"["):
        yield from json_values.records(_blocks(stream), max(bound, ROW_BYTES))
        return
    lines = _lines(stream, bound)
    seen = list(islice(lines, 2))
    if not seen:
        return
    first, promised = seen[0], FORMATS.get(suffix)
    if first.data.startswith(b"{") and not _is_lines(seen, suffix):
        yield from json_values.records(chain((line.raw for line in seen), _blocks(stream)), max(bound, ROW_BYTES))
    elif first.data.startswith(b"{") or promised == "json":
        yield from _line_records(chain(seen, lines))
    elif promised == "csv" or _delimiter(first.data):
        delimiter = _delimiter(first.data) or ","
        yield from tables.csv_records(chain((line.raw for line in seen), stream), delimiter, bound)
    else:
        yield bad(0, "unknown_format", f"neither JSON nor a table: it begins with {first.data[:40]!r}")


def _blocks(stream: io.BufferedReader) -> Iterator[bytes]:
    if head(stream).startswith(BYTE_ORDER_MARK):
        stream.read(len(BYTE_ORDER_MARK))
    yield from iter(lambda: stream.read1(HEAD_BYTES), b"")


def _is_lines(seen: Sequence[Line], suffix: str) -> bool:
    """Whether each line is a row, judged by the first two since one may be damaged. Otherwise rows span several lines,
    or share one."""
    values = list(map(_value, seen))
    if isinstance(values[0], dict):
        return len(seen) > 1 or not json_values.unwrap(values[0])
    return isinstance(values[-1], dict) or (suffix in LINES and seen[0].data != b"{")


def _value(line: Line) -> object:
    try:
        return parse_value(line.data)
    except BadLineError:
        return None


def _delimiter(header: bytes) -> str:
    """The delimiter of a table's header; empty if there is none."""
    return max(("\t", ",", ";"), key=lambda mark: header.count(mark.encode())) if re.search(rb"[\t,;]", header) else ""


def _lines(stream: BinaryIO, bound: int) -> Iterator[Line]:
    number = end = 0
    while raw := stream.readline(bound + 1):
        number, begin, end = number + 1, end, end + len(raw)
        if number == 1:
            raw = raw.removeprefix(BYTE_ORDER_MARK)
        if len(raw) > bound and not raw.endswith(b"\n"):
            while (more := stream.readline(1 << 20)) and not more.endswith(b"\n"):
                end += len(more)
            yield Line(number, b"", raw, begin, end + len(more))
            end += len(more)
        elif data := raw.strip(b" \t\r\n"):
            yield Line(number, data, raw, begin, end)


def _line_records(lines: Iterable[Line]) -> Iterator[Record]:
    for line in lines:
        place = {"size": line.end - line.begin, "begin": line.begin, "end": line.end, "unit": "line"}
        if not line.data:
            yield bad(line.number, "too_long", f"{line.end - line.begin:,} bytes", **place)
            continue
        try:
            row = row_of(parse_value(line.data))
        except BadLineError as error:
            yield bad(line.number, error.reason, str(error), **place)
            continue
        yield Record(line.number, row, **place)  # type: ignore[arg-type]
