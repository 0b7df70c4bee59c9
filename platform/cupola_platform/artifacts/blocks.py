"""Digests of a large file's blocks, so that a part of the file can be fetched alone and verified.

`NAME.blocks` beside `NAME.bin` holds the BLAKE3 digest (16 bytes) of each 2 KiB, in order.
"""

from pathlib import Path

from blake3 import blake3

BLOCK = 2 << 10
"""Bytes. A row of 4,096 tokens has 8 or 16 KiB and begins anywhere, so with larger blocks a node would fetch more of
what others read."""
DIGEST = 16
"""Bytes of a digest: enough against changes, half of what is needed against collisions. They add 0.8 %."""
SUFFIX = ".blocks"
LARGE = ".bin"
"""Suffix of the files of artifacts of which ranks read parts."""


def digests_of(path: str) -> str:
    """The path of the digests of a `.bin` file's blocks."""
    return path.removesuffix(LARGE) + SUFFIX


def digest_of(block: bytes) -> bytes:
    return blake3(block).digest(DIGEST)


def write_blocks(file: Path) -> None:
    """Write the digests of a `.bin` file's blocks beside it."""
    with file.open("rb") as content, Path(digests_of(str(file))).open("wb") as digests:
        while block := content.read(BLOCK):
            digests.write(digest_of(block))
