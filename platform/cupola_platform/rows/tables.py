"""Rows of tables: CSV and TSV, Parquet, Arrow."""

import csv
from collections.abc import Collection, Iterable, Iterator
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import ipc, parquet

from cupola_platform.json_lines import Row
from cupola_platform.rows.record import NOT_UTF8, Record, bad

BATCH = 256
"""Rows of a columnar table held at once."""


def csv_records(lines: Iterable[bytes], delimiter: str, bound: int) -> Iterator[Record]:
    """Rows of text, with keys from the first line. Missing cells are left out.

    Args:
        lines: the file's lines with their ends, without a byte-order mark.
        bound: maximum characters of a cell.
    """
    csv.field_size_limit(bound)
    reader = csv.reader((line.decode("utf-8", "surrogateescape") for line in lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield bad(number, "not_csv", str(error), unit="line")
            continue
        if cells is None:
            return
        if header is None:
            header = [name.strip() for name in cells]
        elif len(cells) > len(header):
            yield bad(number, "too_many_cells", f"{len(cells)} cells for {len(header)} columns", unit="line")
        elif any(map(NOT_UTF8.search, cells)):
            yield bad(number, "not_utf8", "not UTF-8", unit="line")
        elif cells:
            size = sum(map(len, cells))
            yield Record(number, dict(zip(header, cells, strict=False)), size=size, unit="line")


def parquet_records(file: BinaryIO, columns: Collection[str] | None) -> Iterator[Record]:
    """Rows of a Parquet file, read by row group."""
    table = parquet.ParquetFile(file)
    names = _wanted(table.schema_arrow, columns)
    if not names:
        yield from _nameless(table.schema_arrow, table.metadata.num_rows)
        return
    yield from _numbered(table.iter_batches(batch_size=BATCH, columns=names))


def arrow_records(file: BinaryIO, columns: Collection[str] | None) -> Iterator[Record]:
    """Rows of an Arrow file (Feather) or an Arrow stream, as saved by `datasets`, read by batch."""
    start = file.read(6)
    file.seek(0)
    if start == b"ARROW1":
        reader = ipc.open_file(file)
        batches = map(reader.get_batch, range(reader.num_record_batches))
    else:
        reader = ipc.open_stream(file)
        batches = iter(reader)
    names = _wanted(reader.schema, columns)
    if not names:
        yield from _nameless(reader.schema, sum(batch.num_rows for batch in batches))
        return
    yield from _numbered(
        batch.select(names).slice(start, BATCH) for batch in batches for start in range(0, batch.num_rows, BATCH)
    )


def _wanted(schema: Any, columns: Collection[str] | None) -> list[str]:
    """The columns to read: bytes (images, audio) are left out."""
    return [
        field.name
        for field in schema
        if (columns is None or field.name in columns)
        and not pa.types.is_binary(field.type)
        and not pa.types.is_large_binary(field.type)
    ]


def _nameless(schema: Any, rows: int) -> Iterator[Record]:
    """Rows without any wanted column: the column names without values."""
    for number in range(1, rows + 1):
        yield Record(number, dict.fromkeys(schema.names))


def _numbered(batches: Iterable[Any]) -> Iterator[Record]:
    number = 0
    for batch in batches:
        for row in _rows(batch):
            number += 1
            yield bad(number, "not_utf8", "not UTF-8") if row is None else Record(number, row)


def _rows(batch: Any) -> Iterator[Row | None]:
    """A batch's rows; None for one whose text is not UTF-8."""
    try:
        yield from batch.to_pylist(maps_as_pydicts="lossy")
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            yield None
            return
        for place in range(batch.num_rows):
            yield from _rows(batch.slice(place, 1))
