"""Token shards in Megatron-Core's IndexedDataset format, written without Megatron.

`NAME.bin` holds the tokens, one document after another. `NAME.idx` holds, little-endian: `MMIDIDX\\0\\0`, the version 1
(u64), the dtype's code (u8), the counts of sequences and of document boundaries (u64 each), then each sequence's length
(i32) and byte offset (i64), and the indices of the sequences at which documents begin, then the total (i64).
"""

import shutil
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cupola_platform.errors import CorruptArtifactError

_MAGIC = b"MMIDIDX\0\0"
_DTYPE_CODES = {"uint16": 8, "int32": 4}


def token_dtype(vocab_size: int) -> str:
    """The dtype Megatron uses for a vocabulary: uint16 below 65,500 rows, else int32."""
    return "uint16" if vocab_size < 65_500 else "int32"


class ShardWriter:
    """Writes one `.bin` and `.idx` pair, with one sequence per document."""

    def __init__(self, prefix: Path, dtype: str) -> None:
        """`prefix` is the path without suffix."""
        self._prefix = prefix
        self._dtype = np.dtype(dtype)
        self._lengths: list[NDArray[np.int64]] = []
        self._file = prefix.with_name(prefix.name + ".bin").open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None:
            self._write_index()

    @property
    def documents(self) -> int:
        return sum(map(len, self._lengths))

    @property
    def tokens(self) -> int:
        return int(sum(lengths.sum() for lengths in self._lengths))

    def add(self, tokens: NDArray[np.integer]) -> None:
        """Append one document. Shape [tokens]."""
        self.add_documents(tokens, np.array([len(tokens)]))

    def add_documents(self, tokens: NDArray[np.integer], lengths: NDArray[np.int64]) -> None:
        """Append concatenated documents. Shapes [tokens], [documents]."""
        self._file.write(np.ascontiguousarray(tokens, self._dtype).data)
        self._lengths.append(lengths)

    def add_shard(self, prefix: Path) -> None:
        """Append the documents of another shard with the same dtype."""
        self._lengths.append(document_lengths(prefix))
        with prefix.with_name(prefix.name + ".bin").open("rb") as part:
            shutil.copyfileobj(part, self._file, 1 << 22)

    def _write_index(self) -> None:
        lengths = np.concatenate([*self._lengths, np.empty(0, np.int64)])
        offsets = (np.cumsum(lengths) - lengths) * self._dtype.itemsize
        with self._prefix.with_name(self._prefix.name + ".idx").open("wb") as index:
            index.write(_MAGIC + struct.pack("<QB", 1, _DTYPE_CODES[self._dtype.name]))
            index.write(struct.pack("<QQ", len(lengths), len(lengths) + 1))
            index.write(lengths.astype("<i4").data)
            index.write(offsets.astype("<i8").data)
            index.write(np.arange(len(lengths) + 1, dtype="<i8").data)


def document_lengths(prefix: Path) -> NDArray[np.int64]:
    """Tokens of each document of a shard. Shape [documents].

    Raises:
        CorruptArtifactError: the `.idx` is not such an index, or is truncated.
    """
    path = prefix.with_name(prefix.name + ".idx")
    data = path.read_bytes()
    count = struct.unpack_from("<Q", data, 18)[0] if data.startswith(_MAGIC) and len(data) >= 34 else -1
    if len(data) != 34 + 12 * count + 8 * (count + 1):
        raise CorruptArtifactError(f"{path} is truncated or not an index of token shards. Prepare the tokens again.")
    return np.frombuffer(data, "<i4", count, 34).astype(np.int64)


def read_document(prefix: Path, start: int, length: int) -> NDArray[np.integer]:
    """`length` tokens of a shard, from token `start` on. Shape [length]."""
    with prefix.with_name(prefix.name + ".idx").open("rb") as index:
        code = index.read(18)[17]
    (dtype,) = (np.dtype(name) for name, known in _DTYPE_CODES.items() if known == code)
    with prefix.with_name(prefix.name + ".bin").open("rb") as tokens:
        return np.fromfile(tokens, dtype, length, offset=start * dtype.itemsize)
