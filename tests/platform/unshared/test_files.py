from pathlib import Path
from typing import Any

import pytest

from cupola_platform.store import LocalStore
from cupola_platform.store.plain import Objects
from cupola_platform.store.s3 import S3Store
from cupola_platform.unshared import files
from cupola_platform.unshared.files import Files


@pytest.fixture
def objects(s3: Any, tmp_path: Path) -> Objects:
    """The test's own part of a real S3 server."""
    url = f"s3://{s3.bucket}/{tmp_path.name}"
    return S3Store(url, cache=LocalStore(tmp_path / "cache"), endpoint_url=s3.endpoint_url).objects("job")


@pytest.fixture
def two(objects: Objects, tmp_path: Path) -> tuple[Files, Files]:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    return tuple(Files(objects, tmp_path / name, lambda path: path != "private") for name in ("here", "there"))  # type: ignore[return-value]


def test_a_log_grows_at_the_other_end_and_only_its_end_is_sent(
    two: tuple[Files, Files], objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "BLOCK", 100)
    here, there = two
    log = here.folder / "samples/metrics.jsonl"
    log.parent.mkdir()
    log.write_text("a" * 250)
    here.push()
    there.pull()
    other = there.folder / "samples/metrics.jsonl"
    inode = other.stat().st_ino
    sent: list[str] = []

    def write(name: str, data: bytes) -> None:
        sent.append(name)
        objects.under("files").write(name, data)

    monkeypatch.setattr(here.objects, "write", write)
    with log.open("a") as file:
        file.write("b" * 100)
    here.push()
    assert sent == ["samples/metrics.jsonl/000002", "samples/metrics.jsonl/000003"]
    there.pull()
    assert other.read_text() == "a" * 250 + "b" * 100
    assert other.stat().st_ino == inode
    log.unlink()
    log.write_text("c" * 120)  # as a job that resumes replaces it
    here.push()
    there.pull()
    assert other.read_text() == "c" * 120
    assert set(objects.under("files").sizes()) == {f"samples/metrics.jsonl/00000{number}" for number in (0, 1)}


def test_what_is_removed_private_or_sealed_is_not_in_the_store(two: tuple[Files, Files]) -> None:
    here, there = two
    for path in ("a", "private", ".hidden", "heartbeats/x", "checkpoints/step_1/manifest.json", "result.json", "empty"):
        (here.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (here.folder / path).write_text("" if path == "empty" else path)
    here.push(but={"result.json"})
    assert here.names() == {"a", "empty"}
    (here.folder / "a").unlink()
    here.push()
    assert here.names() == {"empty", "result.json"}
    (there.folder / "stale").touch()
    (there.folder / "result.json").touch()
    there.pull(but={"result.json"}, exactly=True)
    assert {path.name for path in there.folder.iterdir()} == {"empty"}
    assert there.get("result.json") == b"result.json"
    assert there.get("nowhere") is None


def test_a_file_is_replaced_at_the_other_end_although_its_size_stays(two: tuple[Files, Files]) -> None:
    here, there = two
    for text in ("one", "two"):
        (here.folder / "rollbacks.json").write_text(text)
        here.push()
        there.pull()
        assert (there.folder / "rollbacks.json").read_text() == text
