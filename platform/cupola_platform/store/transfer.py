"""Transfers between a folder and a bucket, and within a bucket: many small files and one large file at once, by every
part.

All files of an artifact are cut into parts, which share one pool of threads, so one large file keeps as many
connections busy as a thousand small ones. A small file takes one request.

boto3's transfer manager does the uploads. Its downloads take up to twice the processor time of those here, see
`benchmarks/store.py`.
"""

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boto3.s3.transfer import TransferConfig, create_transfer_manager
from botocore.exceptions import BotoCoreError

AT_ONCE = 16
"""Parts in transfer at a time."""
PART = 8 << 20
"""Bytes of a part of a large file. Uploads take larger ones for files that would have more than S3's 10,000."""
COPIED_PART = 512 << 20
"""Bytes of a part that is copied within the bucket. S3 allows 5 GB, but copies the parts of an object side by side."""
ATTEMPTS = 4
"""Tries for a part whose download breaks off."""
BLOCK = 256 << 10
"""Bytes read from a connection at a time. With 1 MiB a download takes 1.7 times the processor time."""

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
    blake3: str = ""
    """Kept in the object's metadata, if known."""
    source: str = ""
    """Key of an equal object of the bucket, to copy in place of the file."""

    def parts(self) -> list[tuple[int, int]]:
        """Offset and length of each part."""
        return [(start, min(PART, self.size - start)) for start in range(0, self.size, PART)] or [(0, 0)]


def upload(client: Any, bucket: str, items: Sequence[Item]) -> None:
    """Upload files, of which the server checks a checksum of every part; copy those that have a `source`.

    Raises:
        ClientError, BotoCoreError: the server refused or cannot be reached; parts of unfinished files are removed.
    """
    files, copies = ([item for item in items if bool(item.source) is copied] for copied in (False, True))
    with _manager(client, PART) as manager:  # on an error it cancels the others
        uploads = [manager.upload(str(item.path), bucket, item.key, _headers(item)) for item in files]
        for each in uploads:
            each.result()
    with _manager(client, COPIED_PART) as manager:
        copying = [
            manager.copy(
                {"Bucket": bucket, "Key": item.source}, bucket, item.key,
                {"Metadata": {"blake3": item.blake3}, "MetadataDirective": "REPLACE"},
            )
            for item in copies
        ]  # fmt: skip
        for each in copying:
            each.result()


def _manager(client: Any, part: int) -> Any:
    config = TransferConfig(
        multipart_threshold=part, multipart_chunksize=part, max_concurrency=AT_ONCE,
        preferred_transfer_client="classic",
    )  # fmt: skip
    return create_transfer_manager(client, config)


def download(client: Any, bucket: str, items: Sequence[Item], checked: Callable[[Item], None]) -> None:
    """Download files under temporary names.

    Args:
        checked: called with each item once its file is complete, in a thread; it checks and renames the file.

    Raises:
        ClientError, BotoCoreError: the server refused or cannot be reached.
        CorruptArtifactError: by `checked`.
    """
    _all_parts(_Download(client, bucket, item, checked).parts() for item in items)


@dataclass
class _Download:
    client: Any
    bucket: str
    item: Item
    checked: Callable[[Item], None]
    _missing: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def parts(self) -> list[Work]:
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


def _headers(item: Item) -> dict[str, Any]:
    return {"ChecksumAlgorithm": "CRC32"} | ({"Metadata": {"blake3": item.blake3}} if item.blake3 else {})


def _all_parts(files: Iterable[Sequence[Work]]) -> None:
    """Do the parts of all files; after a failure those that have not begun are left out."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            jobs = [pool.submit(part) for parts in files for part in parts]
            for job in as_completed(jobs):
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
