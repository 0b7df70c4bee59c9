"""Plain objects under a name in the bucket: what the nodes of a job exchange if they share no folder."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Any

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

from cupola_platform.errors import NotFoundError
from cupola_platform.store import transfer
from cupola_platform.store.transfer import Item

ABSENT = ("NoSuchKey", "404", "NotFound")
REMOVED_AT_ONCE = 1000
"""Keys that S3 removes in one request."""


class Objects:
    """The objects under one prefix. Every method raises StoreError if the server refuses or cannot be reached."""

    def __init__(
        self, client: Any, bucket: str, prefix: str, refusals: Callable[[], AbstractContextManager[None]]
    ) -> None:
        """`prefix` ends with a slash."""
        self._s3, self.bucket, self.prefix, self._refusals = client, bucket, prefix, refusals

    def under(self, name: str) -> "Objects":
        """The objects under a name below this one."""
        return Objects(self._s3, self.bucket, f"{self.prefix}{name}/", self._refusals)

    def sizes(self) -> dict[str, tuple[int, str]]:
        """Size in bytes and version (it changes with the content) of every object, by name."""
        return {item["Key"].removeprefix(self.prefix): (item["Size"], item["ETag"]) for item in self._listed()}

    def changed(self) -> datetime | None:
        """When an object was last written, by the server's clock; None if there is none."""
        return max((item["LastModified"] for item in self._listed()), default=None)

    def read(self, name: str, first: int = 0, count: int | None = None) -> bytes:
        """An object's bytes, or `count` of them from `first` on. Raises NotFoundError."""
        if count == 0:
            return b""
        span = {"Range": f"bytes={first}-{'' if count is None else first + count - 1}"} if first or count else {}
        with self._refusals():
            try:
                return bytes(self._s3.get_object(Bucket=self.bucket, Key=self.prefix + name, **span)["Body"].read())
            except ClientError as error:
                if error.response["Error"]["Code"] in ABSENT:
                    raise NotFoundError(f"There is no s3://{self.bucket}/{self.prefix}{name}.") from None
                raise

    def write(self, name: str, data: bytes, *, once: bool = False) -> None:
        """Write an object. With `once`, an existing one stays as it is."""
        condition = {"IfNoneMatch": "*"} if once else {}
        with self._refusals():
            try:
                self._s3.put_object(
                    Bucket=self.bucket, Key=self.prefix + name, Body=data, ChecksumAlgorithm="SHA256", **condition
                )
            except ClientError as error:
                if not once or error.response["Error"]["Code"] not in ("PreconditionFailed", "412"):
                    raise

    def upload(self, files: Mapping[str, Path]) -> None:
        """Write objects from files, by name, large ones in parts. The server checks a checksum of every part."""
        items = [Item(path, self.prefix + name, path.stat().st_size) for name, path in files.items()]
        with self._refusals():
            transfer.upload(self._s3, self.bucket, items)

    def download(self, name: str, path: Path) -> None:
        """Write an object into a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._refusals():
            self._s3.download_file(self.bucket, self.prefix + name, str(path), Config=_parts())

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects, whether they are there or not."""
        keys: list[Any] = [{"Key": self.prefix + name} for name in names]
        with self._refusals():
            for first in range(0, len(keys), REMOVED_AT_ONCE):
                some = keys[first : first + REMOVED_AT_ONCE]
                self._s3.delete_objects(Bucket=self.bucket, Delete={"Objects": some, "Quiet": True})

    def _listed(self) -> list[Any]:
        with self._refusals():
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix)
            return [item for page in pages for item in page.get("Contents", [])]


def _parts() -> TransferConfig:
    return TransferConfig(multipart_threshold=16 << 20, multipart_chunksize=16 << 20, max_concurrency=4)
