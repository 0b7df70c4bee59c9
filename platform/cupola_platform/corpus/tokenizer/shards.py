"""Writing token shards in Megatron-Core's IndexedDataset format, without Megatron."""

import struct
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cupola_platform.corpus.tokenizer.shard_index import DTYPE_CODES, MAGIC, ShardIndex
from cupola_platform.errors import CorruptArtifactError

_COPY = 1 << 22
"""Bytes copied at a time."""


def token_dtype(vocab_size: int) -> str:
    """The dtype Megatron uses for a vocabulary: uint16 below 65,500 rows, else int32."""
    return "uint16" if vocab_size < 65_500 else "int32"


class ShardWriter:
    """Writes documents, one sequence each, to a pair of `.bin` and `.idx`, or to several pairs."""

    def __init__(self, prefix: Path, dtype: str, max_bytes: int | None = None) -> None:
        """
        Args:
            prefix: the path of the first pair without suffix.
            max_bytes: maximum size of a `.bin`; documents that do not fit go to a new one. Only a single document may
                be larger.
        """
        self._prefix = prefix
        self._dtype = np.dtype(dtype)
        self._room = max_bytes // self._dtype.itemsize if max_bytes else None
        self.names: list[str] = []
        """The pairs, in order, without suffix."""
        self.documents = 0
        self.tokens = 0
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None:
            self._write_index()

    def add(self, tokens: NDArray[np.integer]) -> None:
        """Append one document. Shape [tokens]."""
        self.add_documents(tokens, np.array([len(tokens)]))

    def add_documents(self, tokens: NDArray[np.integer], lengths: NDArray[np.int64]) -> None:
        """Append concatenated documents. Shapes [tokens], [documents]."""
        written = 0

        def write(count: int) -> None:
            nonlocal written
            self._file.write(np.ascontiguousarray(tokens[written : written + count], self._dtype).data)
            written += count

        self._append(lengths, write)

    def add_shard(self, prefix: Path) -> None:
        """Append the documents of another pair with the same dtype."""
        with prefix.with_name(prefix.name + ".bin").open("rb") as part:

            def write(count: int) -> None:
                left = count * self._dtype.itemsize
                while left:
                    content = part.read(min(left, _COPY))
                    if not content:
                        raise CorruptArtifactError(f"{part.name} is shorter than its index says. Prepare it again.")
                    left -= self._file.write(content)

            self._append(ShardIndex(prefix).lengths, write)

    def _append(self, lengths: NDArray[np.integer], write: Callable[[int], None]) -> None:
        """Append documents; `write` writes the next so many of their tokens."""
        while len(lengths):
            count = self._fitting(lengths)
            if not count:
                self._file.close()
                self._write_index()
                self._open()
                continue
            self._lengths.append(np.asarray(lengths[:count], np.int64))
            size = int(self._lengths[-1].sum())
            write(size)
            self._in_file += size
            self.tokens += size
            self.documents += count
            lengths = lengths[count:]

    def _fitting(self, lengths: NDArray[np.integer]) -> int:
        """How many of these documents the open file takes."""
        if self._room is None:
            return len(lengths)
        ends = np.cumsum(lengths, dtype=np.int64)
        count = int(np.searchsorted(ends, self._room - self._in_file, side="right"))
        return count or int(self._in_file == 0)

    def _open(self) -> None:
        number = len(self.names)
        self.names.append(f"{self._prefix.name}.{number:05d}" if number else self._prefix.name)
        self._lengths: list[NDArray[np.int64]] = []
        self._in_file = 0
        self._file = self._prefix.with_name(self.names[-1] + ".bin").open("wb")

    def _write_index(self) -> None:
        lengths = np.concatenate([*self._lengths, np.empty(0, np.int64)])
        offsets = (np.cumsum(lengths) - lengths) * self._dtype.itemsize
        with self._prefix.with_name(self.names[-1] + ".idx").open("wb") as index:
            index.write(MAGIC + struct.pack("<QB", 1, DTYPE_CODES[self._dtype.name]))
            index.write(struct.pack("<QQ", len(lengths), len(lengths) + 1))
            index.write(lengths.astype("<i4").data)
            index.write(offsets.astype("<i8").data)
            index.write(np.arange(len(lengths) + 1, dtype="<i8").data)
