"""Transfers by parts: sizes at every edge, connections that break, and a failure that leaves no parts behind."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from botocore.exceptions import ClientError, ResponseStreamingError

from cupola_platform.store import transfer
from cupola_platform.store.transfer import Item

MIB = 1 << 20


@pytest.fixture
def parts_of_5_mib(monkeypatch: pytest.MonkeyPatch) -> None:
    """S3's smallest parts, so that small files have several."""
    monkeypatch.setattr(transfer, "PART", 5 * MIB)


def write(folder: Path, name: str, size: int) -> Item:
    (folder / name).write_bytes(os.urandom(size))
    return Item(folder / name, f"{folder.name}/{name}", size, blake3((folder / name).read_bytes()).hexdigest())


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_files_of_every_size_arrive_whole(s3: Any, tmp_path: Path, parts_of_5_mib: None) -> None:
    sizes = (0, 1, 5 * MIB - 1, 5 * MIB, 5 * MIB + 1, 12 * MIB)
    items = [write(tmp_path, f"file {size}", size) for size in sizes]
    transfer.upload(s3.client, s3.bucket, items)
    sent = {item.path.name: digest(item.path) for item in items}
    arrived: list[str] = []
    to = [Item(tmp_path / f"{item.path.name}.back", item.key, item.size, item.blake3) for item in items]
    transfer.download(s3.client, s3.bucket, to, lambda item: arrived.append(item.path.name))
    assert sorted(arrived) == sorted(f"{name}.back" for name in sent)
    assert {name: digest(tmp_path / f"{name}.back") for name in sent} == sent
    assert s3.client.head_object(Bucket=s3.bucket, Key=items[-1].key)["Metadata"] == {"blake3": items[-1].blake3}
    assert [len(item.parts()) for item in items] == [1, 1, 1, 1, 2, 3]


def test_a_download_whose_connection_breaks_is_tried_again(
    s3: Any, tmp_path: Path, parts_of_5_mib: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = write(tmp_path, "x", 12 * MIB)
    transfer.upload(s3.client, s3.bucket, [item])
    write_part = transfer._Download._write
    breaks = iter([True, False, True, True])

    def broken(self: Any, body: Any, at: int) -> None:  # what a server that goes away does to a reader
        if next(breaks, False):
            raise ResponseStreamingError(error="reset")
        write_part(self, body, at)

    monkeypatch.setattr(transfer._Download, "_write", broken)
    back = Item(tmp_path / "back", item.key, item.size, item.blake3)
    transfer.download(s3.client, s3.bucket, [back], lambda item: None)
    assert digest(tmp_path / "back") == digest(item.path)


def test_an_upload_that_fails_leaves_no_parts(
    s3: Any, tmp_path: Path, parts_of_5_mib: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = write(tmp_path, "x", 12 * MIB)
    gone = write(tmp_path, "gone", 12 * MIB)
    gone.path.unlink()
    with pytest.raises(FileNotFoundError):
        transfer.upload(s3.client, s3.bucket, [item, gone])
    pending = s3.client.list_multipart_uploads(Bucket=s3.bucket, Prefix=f"{tmp_path.name}/")
    assert pending.get("Uploads", []) == []
    with pytest.raises(ClientError):
        s3.client.head_object(Bucket=s3.bucket, Key=gone.key)
