"""Objects of any S3 bucket as sources of text: listed and fetched, never written."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from cupola_platform.errors import SourceError
from cupola_platform.settings import load_settings


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object of a bucket."""

    url: str
    size: int
    """Bytes."""

    etag: str
    """Changes with the content, but is not a digest."""


def list_objects(url: str) -> list[StoredObject]:
    """Every object whose key begins with that of `s3://bucket/key`, sorted by key.

    Raises:
        SourceError: the bucket does not exist, refuses, or cannot be reached.
    """
    bucket, key = _parts(url)
    with _refusals(url):
        pages = _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
        objects = [item for page in pages for item in page.get("Contents", [])]
    return [
        StoredObject(f"s3://{bucket}/{item['Key']}", item["Size"], item.get("ETag", ""))
        for item in sorted(objects, key=lambda item: item["Key"])
    ]


def fetch_object(url: str, to: Path) -> None:
    """Download one object into the file `to`.

    Raises:
        SourceError: the object is gone, or the server refuses or cannot be reached.
    """
    bucket, key = _parts(url)
    with _refusals(url):
        _client().download_file(bucket, key, str(to))


def _parts(url: str) -> tuple[str, str]:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return bucket, key


def _client() -> Any:
    settings = load_settings()
    style: Any = {"addressing_style": "path" if settings.s3_endpoint_url else "auto"}
    config = Config(s3=style, connect_timeout=10, retries={"mode": "standard", "total_max_attempts": 4})
    return boto3.client("s3", endpoint_url=settings.s3_endpoint_url, region_name=settings.s3_region, config=config)


@contextmanager
def _refusals(url: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        code = error.response["Error"]["Code"]
        raise SourceError(f"{url} cannot be read: {code}. Check the bucket, the key and AWS_ACCESS_KEY_ID.") from None
    except (BotoCoreError, Boto3Error) as error:
        raise SourceError(f"{url} cannot be read: {error} Check s3_endpoint_url and the credentials.") from None
