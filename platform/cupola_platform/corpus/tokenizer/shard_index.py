"""Reading token shards in Megatron-Core's IndexedDataset format, without Megatron.

`NAME.bin` holds the tokens, one document after another. `NAME.idx` holds, little-endian: `MMIDIDX\\0\\0`, the version 1
(u64), the dtype's code (u8), the counts of sequences and of document boundaries (u64 each), then each sequence's length
(i32) and byte offset (i64), and the indices of the sequences at which documents begin, then the total (i64).

A source's split has one such pair, or several if its tokens do not fit one; `index.json` lists them.
"""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cupola_platform.errors import CorruptArtifactError

MAGIC = b"MMIDIDX\0\0"
DTYPE_CODES = {"uint16": 8, "int32": 4}
T = TypeVar("T", np.int32, np.int64)
_HEADER = 34
"""Bytes before the lengths."""


class ShardIndex:
    """An `.idx` file. Its arrays are mapped, so opening it takes the same time and memory for any size."""

    def __init__(self, prefix: Path) -> None:
        """`prefix` is the path without suffix.

        Raises:
            CorruptArtifactError: the file is missing, truncated, or not such an index.
        """
        self.path, self.tokens_path = (prefix.with_name(prefix.name + suffix) for suffix in (".idx", ".bin"))
        try:
            with self.path.open("rb") as index:
                header = index.read(_HEADER)
                size = index.seek(0, 2)
        except FileNotFoundError:
            raise CorruptArtifactError(f"{self.path} is missing. Make or fetch the artifact again.") from None
        known = header.startswith(MAGIC) and len(header) == _HEADER
        self.documents = struct.unpack_from("<Q", header, 18)[0] if known else -1
        dtypes = [name for name, code in DTYPE_CODES.items() if known and code == header[17]]
        if size != _HEADER + 12 * self.documents + 8 * (self.documents + 1) or not dtypes:
            raise CorruptArtifactError(
                f"{self.path} is truncated or not an index of token shards. Make or fetch the artifact again."
            )
        self.dtype = np.dtype(dtypes[0])
        self.tokens = 0
        """Of all documents together."""
        if self.documents:
            self.tokens = int(self.starts[-1]) // self.dtype.itemsize + int(self.lengths[-1])

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each document. Shape [documents]."""
        return self._mapped(np.int32, _HEADER)

    @property
    def starts(self) -> NDArray[np.int64]:
        """The byte of the `.bin` at which each document begins. Shape [documents]."""
        return self._mapped(np.int64, _HEADER + 4 * self.documents)

    def check_size(self, size: int) -> None:
        """Refuse a `.bin` of another size in bytes than the documents have. Raises CorruptArtifactError."""
        if size != self.tokens * self.dtype.itemsize:
            raise CorruptArtifactError(
                f"{self.tokens_path} has {size:,} bytes, but its index counts {self.tokens:,} tokens of "
                f"{self.dtype.itemsize} bytes. Make or fetch the artifact again."
            )

    def _mapped(self, dtype: type[T], offset: int) -> NDArray[T]:
        if not self.documents:
            return np.empty(0, dtype)
        return np.memmap(self.path, dtype, "r", offset, (self.documents,))


def shard_names(counts: Mapping[str, Any], split: str, source: str) -> list[str]:
    """The shards of a source's split without suffix, in the order of their tokens.

    Args:
        counts: what `index.json` says about the split. Without "files", it has one shard named after split and source.
    """
    return list(counts.get("files", [f"{split}-{source}"]))


def open_shards(folder: Path, counts: Mapping[str, Any], split: str, source: str) -> list[ShardIndex]:
    """The indices of a source's split, in the order of their tokens.

    Args:
        folder: a `tokens` artifact's folder.
        counts: what its `index.json` says about the split.

    Raises:
        CorruptArtifactError: an index is missing or truncated, or together they count otherwise than `index.json`.
    """
    indices = [ShardIndex(folder / "shards" / name) for name in shard_names(counts, split, source)]
    for what in ("documents", "tokens"):
        held = sum(getattr(index, what) for index in indices)
        if held != counts[what]:
            raise CorruptArtifactError(
                f"{folder / 'index.json'} counts {counts[what]:,} {what} of {split}-{source}, but its {len(indices)} "
                f"shards hold {held:,}. Make or fetch the artifact again."
            )
    return indices
