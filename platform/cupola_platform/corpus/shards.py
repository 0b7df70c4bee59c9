"""Token shards in Megatron-Core's IndexedDataset format, written without Megatron.

`NAME.bin` holds the tokens, one document after another. `NAME.idx` holds, little-endian: `MMIDIDX\\0\\0`, the version 1
(u64), the dtype's code (u8), the counts of sequences and of document boundaries (u64 each), then each sequence's
length (i32) and byte offset (i64), and the sequence numbers at which documents begin, with the end (i64).
"""

import struct
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

_MAGIC = b"MMIDIDX\0\0"
_DTYPE_CODES = {"uint16": 8, "int32": 4}


def token_dtype(vocab_size: int) -> str:
    """The dtype that Megatron picks for a vocabulary: uint16 below 65,500 rows, else int32."""
    return "uint16" if vocab_size < 65_500 else "int32"


class ShardWriter:
    """Writes one `.bin` and `.idx` pair, each document one sequence."""

    def __init__(self, prefix: Path, dtype: str) -> None:
        """`prefix` is the path without its suffix."""
        self._prefix = prefix
        self._dtype = np.dtype(dtype)
        self._lengths: list[int] = []
        self._tokens = prefix.with_name(prefix.name + ".bin").open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tokens.close()
        if kind is None:
            self._write_index()

    @property
    def documents(self) -> int:
        return len(self._lengths)

    @property
    def tokens(self) -> int:
        return sum(self._lengths)

    def add(self, tokens: NDArray[np.integer]) -> None:
        """Append one document. Shape [tokens], of the shard's dtype."""
        self._tokens.write(np.ascontiguousarray(tokens, self._dtype).tobytes())
        self._lengths.append(len(tokens))

    def _write_index(self) -> None:
        lengths = np.array(self._lengths, "<i4")
        offsets = np.zeros(len(lengths), "<i8")
        np.cumsum(lengths[:-1], dtype=np.int64, out=offsets[1:])
        with self._prefix.with_name(self._prefix.name + ".idx").open("wb") as index:
            index.write(_MAGIC + struct.pack("<QB", 1, _DTYPE_CODES[self._dtype.name]))
            index.write(struct.pack("<QQ", len(lengths), len(lengths) + 1))
            index.write(lengths.tobytes())
            index.write((offsets * self._dtype.itemsize).astype("<i8").tobytes())
            index.write(np.arange(len(lengths) + 1, dtype="<i8").tobytes())
