"""Documents between two steps of a preparation: one Parquet file per task, read and written by row group."""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow
from blake3 import blake3
from numpy.typing import NDArray
from pyarrow import parquet

from cupola_platform.corpus.core.documents import Document

GROUP_BYTES = 1 << 20
"""Text per row group: the maximum held in memory, unless a single document is longer."""

I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]

_STRINGS, _NUMBERS = ("source", "path", "text", "language", "digest", "licence"), ("row", "size", "begin", "end")
_SCHEMA = pyarrow.schema(
    {name: pyarrow.string() for name in _STRINGS}
    | {name: pyarrow.int64() for name in _NUMBERS}
    | {"bits_per_byte": pyarrow.float64()}
)


def documents_file(folder: Path, rank: int) -> Path:
    """The file of a task's documents."""
    return folder / f"{rank:05d}.parquet"


class DocumentWriter:
    """Writes one task's documents, their digests ([documents, 2], the first 16 bytes) and their sizes."""

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._rank = folder, rank
        self._file = parquet.ParquetWriter(
            documents_file(folder, rank), _SCHEMA, compression="zstd", compression_level=1
        )
        self._group: list[Document] = []
        self._filled = 0
        self._digests: list[bytes] = []
        self._sizes: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
            np.save(
                _array(self._folder, self._rank, "digests"),
                np.frombuffer(b"".join(self._digests), "<u8").reshape(-1, 2),
            )
            np.save(_array(self._folder, self._rank, "sizes"), np.array(self._sizes, np.int64))
        self._file.close()

    def add(self, document: Document) -> None:
        """Append a document whose digest is set."""
        self._group.append(document)
        self._filled += document.size
        self._digests.append(bytes.fromhex(document.digest)[:16])
        self._sizes.append(document.size)
        if self._filled >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._group:
            rows = {name: [getattr(document, name) for document in self._group] for name in _SCHEMA.names}
            self._file.write_table(pyarrow.table(rows, schema=_SCHEMA))
        self._group, self._filled = [], 0


def read_documents(folder: Path, rank: int) -> Iterator[Document]:
    """One task's documents, in order."""
    with parquet.ParquetFile(documents_file(folder, rank)) as file:
        for group in range(file.num_row_groups):
            for row in file.read_row_group(group).to_pylist():
                yield Document(**row)


def read_name(folder: Path, begins: I64, number: int) -> str:
    """A document's name, without reading any text. `begins` comes from `first_indices`."""
    rank = int(np.searchsorted(begins, number, side="right")) - 1
    with parquet.ParquetFile(documents_file(folder, rank)) as file:
        row = file.read(["path", "row"]).slice(number - int(begins[rank]), 1).to_pylist()[0]
    return Document("", row["path"], row["row"], "", 0).name


def read_array(folder: Path, rank: int, name: str) -> NDArray[Any]:
    """One task's array with one or more numbers per document, memory-mapped."""
    path = _array(folder, rank, name)
    array: NDArray[Any] = np.load(path, mmap_mode="r") if path.stat().st_size > 128 else np.load(path)
    return array


def save_array(folder: Path, rank: int, name: str, values: NDArray[Any]) -> None:
    """Save one task's array beside its documents."""
    np.save(_array(folder, rank, name), values)


def document_counts(folder: Path, tasks: int) -> list[int]:
    """The number of documents of each task."""
    return [len(read_array(folder, rank, "sizes")) for rank in range(tasks)]


def first_indices(folder: Path, tasks: int) -> I64:
    """The index of each task's first document over all tasks, then the total. Shape [tasks + 1]."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(document_counts(folder, tasks), dtype=np.int64)])


def with_digest(document: Document) -> str:
    """BLAKE3 of a document's text in UTF-8, in hex."""
    return blake3(document.text.encode()).hexdigest()


def _array(folder: Path, rank: int, name: str) -> Path:
    return folder / f"{rank:05d}.{name}.npy"
