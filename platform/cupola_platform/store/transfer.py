"""Transfers between a folder and a bucket: many small files and one large file at once, by every part.

All files of an artifact are cut into pieces, which share one pool of threads, so one large file keeps as many
connections busy as a thousand small ones. A small file takes one request.
"""

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

AT_ONCE = 16
"""Pieces in transfer at a time."""
PART = 16 << 20
"""Bytes of a part of a large file; more if it would have more than `MOST_PARTS`."""
MOST_PARTS = 10_000
"""S3's limit on the parts of an object."""
ATTEMPTS = 4
"""Tries for a piece whose download breaks off."""
BLOCK = 1 << 20
"""Bytes read from a connection at a time."""

Work = Callable[[], object]


@dataclass(frozen=True)
class Item:
    """One file to transfer."""

    path: Path
    """Here."""
    key: str
    """In the bucket."""
    size: int
    """Bytes."""
    blake3: str
    """Kept in the object's metadata."""

    def parts(self) -> list[tuple[int, int]]:
        """Offset and length of each part."""
        length = max(PART, -(-self.size // (MOST_PARTS * BLOCK)) * BLOCK)
        return [(start, min(length, self.size - start)) for start in range(0, self.size, length)] or [(0, 0)]


def upload(client: Any, bucket: str, items: Sequence[Item]) -> None:
    """Upload files. The server checks a checksum of every piece.

    Raises:
        ClientError, BotoCoreError: the server refused or cannot be reached; parts of unfinished files are removed.
    """
    uploads = [_Upload(client, bucket, item) for item in items]
    try:
        _all_pieces(each.pieces() for each in uploads)
    except BaseException:
        for each in uploads:
            each.abort()
        raise


def download(client: Any, bucket: str, items: Sequence[Item], checked: Callable[[Item], None]) -> None:
    """Download files under temporary names.

    Args:
        checked: called with each item once its file is complete, in a thread; it checks and renames the file.

    Raises:
        ClientError, BotoCoreError: the server refused or cannot be reached.
        CorruptArtifactError: by `checked`.
    """
    _all_pieces(_Download(client, bucket, item, checked).pieces() for item in items)


@dataclass
class _Upload:
    client: Any
    bucket: str
    item: Item
    _id: str = ""
    _tags: dict[int, dict[str, Any]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def pieces(self) -> list[Work]:
        parts = self.item.parts()
        if len(parts) == 1:
            return [self._whole]
        return [lambda part=part: self._part(*part, count=len(parts)) for part in enumerate(parts, start=1)]  # type: ignore[misc]

    def _whole(self) -> None:
        self.client.put_object(
            Bucket=self.bucket, Key=self.item.key, Body=self.item.path.read_bytes(), ChecksumAlgorithm="CRC32",
            Metadata={"blake3": self.item.blake3},
        )  # fmt: skip

    def _part(self, number: int, place: tuple[int, int], *, count: int) -> None:
        target = {"Bucket": self.bucket, "Key": self.item.key}
        with self._lock:
            if not self._id:
                made = self.client.create_multipart_upload(
                    **target, ChecksumAlgorithm="CRC32", Metadata={"blake3": self.item.blake3}
                )
                self._id = made["UploadId"]
        target["UploadId"] = self._id
        body = _read(self.item.path, *place)
        reply = self.client.upload_part(**target, PartNumber=number, Body=body, ChecksumAlgorithm="CRC32")
        kept = {name: reply[name] for name in ("ETag", "ChecksumCRC32") if name in reply}
        with self._lock:
            self._tags[number] = kept | {"PartNumber": number}
            if len(self._tags) < count:
                return
        parts = [self._tags[each] for each in sorted(self._tags)]
        self.client.complete_multipart_upload(**target, MultipartUpload={"Parts": parts})
        self._id = ""

    def abort(self) -> None:
        if self._id:
            with suppress(ClientError, BotoCoreError):  # the bucket's lifecycle removes it
                self.client.abort_multipart_upload(Bucket=self.bucket, Key=self.item.key, UploadId=self._id)


@dataclass
class _Download:
    client: Any
    bucket: str
    item: Item
    checked: Callable[[Item], None]
    _missing: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def pieces(self) -> list[Work]:
        parts = self.item.parts()
        self._missing = len(parts)
        return [lambda part=part: self._part(*part, whole=len(parts) == 1) for part in parts]  # type: ignore[misc]

    def _part(self, start: int, length: int, *, whole: bool) -> None:
        ranged = {} if whole else {"Range": f"bytes={start}-{start + length - 1}"}
        for left in reversed(range(ATTEMPTS)):
            body = self.client.get_object(Bucket=self.bucket, Key=self.item.key, **ranged)["Body"]
            try:
                self._write(body, start)
                break
            except BotoCoreError:  # the connection broke in the middle, which the client does not retry
                if not left:
                    raise
        with self._lock:
            self._missing -= 1
            if self._missing:
                return
        self.checked(self.item)

    def _write(self, body: Any, at: int) -> None:
        file = os.open(self.item.path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            for block in body.iter_chunks(BLOCK):
                view = memoryview(block)
                while view:
                    written = os.pwrite(file, view, at)
                    view, at = view[written:], at + written
        finally:
            os.close(file)


def _all_pieces(files: Iterable[Sequence[Work]]) -> None:
    """Do the pieces of all files; after a failure those that have not begun are left out."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            jobs = [pool.submit(piece) for pieces in files for piece in pieces]
            for job in as_completed(jobs):
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _read(path: Path, start: int, length: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        data = os.pread(file.fileno(), length, start)
    return data
