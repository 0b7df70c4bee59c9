"""Files as streams of plain bytes: decompressed, and in UTF-8."""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

from pyarrow import ArrowException, CompressedInputStream

HEAD_BYTES = 1 << 16
"""Bytes of a file that may be inspected before it is read."""

COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")

UNREADABLE = (EOFError, OSError, zlib.error, lzma.LZMAError, ArrowException, ValueError)
"""Exceptions raised when reading a truncated or damaged file."""


class _Plain(io.RawIOBase):
    """A stream of what `read` returns. If `read` raises, the data before that is returned first. Closes `raw`."""

    def __init__(self, read: Callable[[int], bytes], raw: BinaryIO) -> None:
        self._read, self._raw = read, raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._raw.close()
        super().close()


def open_plain(path: Path) -> io.BufferedReader:
    """A file's bytes, decompressed according to its content, not its name; UTF-16 with a byte-order mark becomes UTF-8.

    A truncated or damaged file raises one of `UNREADABLE` on reading, after all readable data.
    """
    raw = path.open("rb")
    compression = _compression(raw.peek(6))
    read = _DECOMPRESSORS[compression](raw).read1 if compression else raw.read1
    stream = io.BufferedReader(cast(Any, _Plain(read, raw)), HEAD_BYTES)
    if head(stream)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return io.BufferedReader(cast(Any, _Plain(_in_utf8(stream), raw)), HEAD_BYTES)
    return stream


def head(stream: io.BufferedReader) -> bytes:
    """The first bytes of a stream before anything is read from it, without consuming them; empty if they are
    damaged."""
    try:
        return stream.peek(HEAD_BYTES)
    except UNREADABLE:
        return b""


def is_compressed(path: Path) -> bool:
    """Whether a file's content is compressed."""
    with path.open("rb") as raw:
        return bool(_compression(raw.peek(6)))


def _compression(start: bytes) -> bytes:
    return next((magic for magic in _DECOMPRESSORS if start.startswith(magic)), b"")


def _in_utf8(stream: BinaryIO) -> Callable[[int], bytes]:
    """Re-encode UTF-16, which Windows writes, as UTF-8."""
    blocks = iter(lambda: stream.read(HEAD_BYTES), b"")
    text = (part.encode() for part in codecs.iterdecode(blocks, "utf-16") if part)
    rest = b""

    def read(size: int) -> bytes:
        nonlocal rest
        rest = rest or next(text, b"")
        part, rest = rest[:size], rest[size:]
        return part

    return read


_DECOMPRESSORS: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": lambda raw: gzip.GzipFile(fileobj=raw),
    b"\x28\xb5\x2f\xfd": lambda raw: CompressedInputStream(raw, "zstd"),  # the decoder that raises on a truncated frame
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}
"""Decompressors by the first bytes of their format."""
