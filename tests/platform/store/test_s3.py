import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cupola_platform.artifacts import Artifact, read, seal, verify
from cupola_platform.artifacts.digests import digest_bytes
from cupola_platform.artifacts.elsewhere import Elsewhere
from cupola_platform.errors import CorruptArtifactError, NotFoundError, StoreError
from cupola_platform.store import LocalStore, transfer
from cupola_platform.store.s3 import S3Store
from cupola_platform.workspace import Workspace

MakeFolder = Callable[..., Path]
OpenStore = Callable[..., S3Store]


@pytest.fixture
def open_store(s3: Any, tmp_path: Path) -> OpenStore:
    """A function that opens the test's own prefix with a cache of the given name."""

    def open_(cache: str, bucket: str = s3.bucket, endpoint_url: str = s3.endpoint_url) -> S3Store:
        url = f"s3://{bucket}/{tmp_path.name}"
        return S3Store(url, cache=LocalStore(tmp_path / cache), endpoint_url=endpoint_url, region="us-east-1")

    return open_


def keys(s3: Any, prefix: str) -> list[str]:
    listed = s3.client.list_objects_v2(Bucket=s3.bucket, Prefix=prefix)
    return [found["Key"].removeprefix(f"{prefix}/artifacts/") for found in listed.get("Contents", [])]


def test_one_machine_fetches_what_another_puts(
    open_store: OpenStore, make_folder: MakeFolder, s3: Any, tmp_path: Path
) -> None:
    here, there = open_store("here"), open_store("there")
    sealed = seal(make_folder("a", {"b/x": "1", "large": "x" * (17 << 20)}), kind="checkpoint", metrics={"loss": 1.0})
    kept = here.put(sealed)
    assert kept.path == tmp_path / "here" / sealed.digest
    assert there.digests() == {sealed.digest}
    assert there.holds(sealed.digest)
    assert there.manifest(sealed.digest) == sealed.manifest
    assert not (tmp_path / "there" / sealed.digest).exists()
    assert verify(there.get(sealed.digest).path).metrics == {"loss": 1.0}
    assert there.location(sealed.digest) == f"s3://cupola/{tmp_path.name}/artifacts/{sealed.digest}"


@pytest.fixture
def partial(open_store: OpenStore, make_folder: MakeFolder) -> Callable[[dict[str, str], dict[str, str]], Path]:
    """Makes a sealed folder of files that are here and files that only the store has, below `jobs/a`."""

    def make(here: dict[str, str], there: dict[str, str]) -> Path:
        objects = open_store("here").objects("jobs/a")
        for name, text in there.items():
            objects.write(name, text.encode())
        folder = make_folder("partial", here)
        known = {name: (len(text), digest_bytes(text.encode())) for name, text in there.items()}
        seal(folder, kind="checkpoint", elsewhere=known)
        Elsewhere(at="jobs/a").write(folder)
        return folder

    return make


def sent_and_received(store: S3Store) -> list[tuple[str, int, int]]:
    """Grows with every request: operation, bytes of files sent, bytes received."""
    seen: list[tuple[str, int, int]] = []

    def note(model: Any, params: dict[str, Any], **_: Any) -> None:
        body = params["body"]
        sent = len(body) if hasattr(body, "__len__") else body.seek(0, os.SEEK_END) if hasattr(body, "seek") else 0
        if hasattr(body, "seek"):
            body.seek(0)
        seen.append((model.name, sent, 0))

    def got(model: Any, http_response: Any, **_: Any) -> None:
        received = 0 if model.http["method"] == "HEAD" else int(http_response.headers.get("content-length", 0))
        seen.append((model.name, 0, received))

    store._s3.meta.events.register("before-call.s3.*", note)
    store._s3.meta.events.register("after-call.s3.*", got)
    return seen


def test_what_the_store_has_already_is_copied_there_and_fetched_when_it_is_read(
    open_store: OpenStore, partial: Callable[..., Path], s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "COPIED_PART", 5 << 20)
    large, small = "".join(f"{number:9} " for number in range(1_200_000)), "y" * 1000
    folder = partial({"model.json": "{}"}, {"state/large.bin": large, "state/small.bin": small})
    store, digest = open_store("here"), read(folder).digest
    seen = sent_and_received(store)
    kept = store.put(seal(folder, kind="checkpoint", config={"step": 1}))
    moved = sum(sent + received for _, sent, received in seen)
    assert moved < 20_000, seen
    assert [name for name, sent, received in seen if not received].count("UploadPartCopy") == 3
    assert kept.path == tmp_path / "here" / digest == store.get(digest, partly=True).path
    assert sorted(path.name for path in kept.path.rglob("*") if path.is_file()) == [
        ".elsewhere.json", "manifest.json", "model.json",
    ]  # fmt: skip
    store.objects("jobs/a").remove(["state/large.bin", "state/small.bin"])
    assert verify(open_store("there").get(digest).path).digest == digest
    assert verify(store.get(digest).path).digest == digest
    assert (kept.path / "state/large.bin").read_text() == large
    assert (kept.path / "state/small.bin").stat().st_mode & 0o222 == 0
    assert not (kept.path / ".elsewhere.json").exists()


def test_a_copy_of_what_the_store_has_not_is_refused_by_name(
    open_store: OpenStore, partial: Callable[..., Path], s3: Any
) -> None:
    folder = partial({"model.json": "{}"}, {"state/a.bin": "a" * 10, "state/b.bin": "b" * 10})
    store = open_store("here")
    for text, says in ((b"torn", "has 4 bytes, the manifest says 10"), (None, "has no bytes, the manifest says 10")):
        if text:
            store.objects("jobs/a").write("state/b.bin", text)
        else:
            store.objects("jobs/a").remove(["state/b.bin"])
        with pytest.raises(CorruptArtifactError, match=rf"jobs/a/state/b\.bin {says}"):
            store.put(read(folder))
    assert not store.holds(read(folder).digest)
    assert folder.exists()


def test_an_existing_digest_is_not_written_again(open_store: OpenStore, make_folder: MakeFolder, s3: Any) -> None:
    first = open_store("here").put(seal(make_folder("a", {"x": "1"}), kind="tokens", stage="first"))
    open_store("there").put(seal(make_folder("b", {"x": "1"}), kind="tokens", stage="second"))
    assert open_store("third").get(first.digest).manifest.stage == "first"


def test_a_byte_changed_on_the_server_is_refused_by_name(
    open_store: OpenStore, make_folder: MakeFolder, s3: Any, tmp_path: Path
) -> None:
    sealed = open_store("here").put(seal(make_folder("a", {"b/x": "1234", "y": "5"}), kind="checkpoint"))
    key = f"{tmp_path.name}/artifacts/{sealed.digest}/b/x"
    s3.client.put_object(Bucket=s3.bucket, Key=key, Body=b"1235")
    there = open_store("there")
    with pytest.raises(CorruptArtifactError, match=r"b/x was changed on the server: .*digest"):
        there.get(sealed.digest)
    assert not (tmp_path / "there" / sealed.digest).exists()
    s3.client.put_object(Bucket=s3.bucket, Key=key, Body=b"1234")
    assert verify(there.get(sealed.digest).path).digest == sealed.digest


def test_an_interrupted_fetch_resumes(open_store: OpenStore, make_folder: MakeFolder, s3: Any, tmp_path: Path) -> None:
    sealed = open_store("here").put(seal(make_folder("a", {"one": "1", "two": "2"}), kind="tokens"))
    incoming = tmp_path / "there" / f".incoming-{sealed.digest}"
    incoming.mkdir(parents=True)
    (incoming / "one").write_text("1")
    (incoming / "two").write_text("torn")
    s3.client.delete_object(Bucket=s3.bucket, Key=f"{tmp_path.name}/artifacts/{sealed.digest}/one")  # not needed again
    assert verify(open_store("there").get(sealed.digest).path).digest == sealed.digest


def test_a_killed_upload_leaves_no_artifact_and_resumes(
    open_store: OpenStore, make_folder: MakeFolder, s3: Any, tmp_path: Path
) -> None:
    files = {f"part-{number:03}": f"{number}" * 100_000 for number in range(150)}
    sealed = seal(make_folder("a", files), kind="checkpoint", fingerprint="f" * 64)
    script = (
        "from pathlib import Path; from cupola_platform.artifacts import read\n"
        "from cupola_platform.store import LocalStore; from cupola_platform.store.s3 import S3Store\n"
        f"store = S3Store('s3://{s3.bucket}/{tmp_path.name}', cache=LocalStore(Path('cache')), "
        f"endpoint_url='{s3.endpoint_url}')\nstore.put(read(Path('{sealed.path}')))\n"
    )  # fmt: skip
    upload = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 60
    while len(keys(s3, tmp_path.name)) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(upload.pid, signal.SIGKILL)
    upload.wait()
    there = open_store("there")
    written = len(keys(s3, tmp_path.name))
    assert 3 <= written < 150, "the upload was to be killed in the middle"
    assert not there.holds(sealed.digest)
    with pytest.raises(NotFoundError, match="There is no artifact at"):
        there.get(sealed.digest)
    assert sealed.path.exists()
    open_store("here").put(sealed)
    assert verify(there.get(sealed.digest).path).digest == sealed.digest


def test_a_wrong_secret_a_missing_bucket_and_a_silent_server_are_one_clear_line(
    open_store: OpenStore, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = seal(make_folder("a", {"x": "1"}), kind="tokens")
    with pytest.raises(StoreError, match=r"s3://nowhere on http://127.0.0.1:\d+ does not exist\. Create") as missing:
        open_store("cache", bucket="nowhere").put(sealed)
    with pytest.raises(StoreError, match=r"cannot be reached: .*Check s3_endpoint_url") as silent:
        open_store("cache", endpoint_url="http://127.0.0.1:9").put(sealed)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreError, match=r"refused the credentials") as refused:
        open_store("cache").put(sealed)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "none")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "none")
    with pytest.raises(StoreError, match=r"No credentials for s3://cupola") as without:
        open_store("cache").put(sealed)
    for caught in (missing, silent, refused, without):
        assert "\n" not in str(caught.value)
    assert verify(sealed.path) == sealed, "the folder stays where it was"


def test_two_workspaces_share_a_bucket(
    s3: Any, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUPOLA_STORE_URL", f"s3://{s3.bucket}/{tmp_path.name}")
    monkeypatch.setenv("CUPOLA_S3_ENDPOINT_URL", s3.endpoint_url)
    made = Workspace.open(tmp_path / "one").publish(make_folder("a", {"x": "1"}), kind="tokens", fingerprint="f" * 64)
    other = Workspace.open(tmp_path / "two")
    found = other.find("f" * 64)
    assert found is not None
    assert found.path == tmp_path / "two/cache" / made.digest
    assert other.resolve(made.id[:6]).digest == made.digest


def put_under(s3: Any, prefix: str, sealed: Artifact, digest: str) -> None:
    """Upload a valid artifact under another one's digest, as anyone with write access could."""
    for name in (*(file.path for file in sealed.manifest.files), "manifest.json"):
        s3.client.upload_file(str(sealed.path / name), s3.bucket, f"{prefix}/artifacts/{digest}/{name}")


def test_another_artifact_under_a_digest_is_refused_and_nothing_is_kept_of_it(
    open_store: OpenStore, make_folder: MakeFolder, s3: Any, tmp_path: Path
) -> None:
    first = seal(make_folder("a", {"x": "1"}), kind="checkpoint")
    other = seal(make_folder("b", {"x": "2"}), kind="checkpoint")
    put_under(s3, tmp_path.name, other, first.digest)
    store = open_store("here")
    says = rf"belongs to artifact {other.id}, not to {first.id}\. Remove it"
    for ask in (store.get, store.manifest):
        with pytest.raises(CorruptArtifactError, match=says):
            ask(first.digest)
    assert not store.holds(first.digest)
    with pytest.raises(CorruptArtifactError, match=says):
        store.put(first)
    assert (first.path / "x").read_text() == "1"
    assert [path.name for path in store.cache.root.iterdir() if path.is_dir()] == []


def test_another_artifact_in_the_cache_is_set_aside_and_the_right_one_fetched(
    open_store: OpenStore, make_folder: MakeFolder, tmp_path: Path
) -> None:
    first = open_store("here").put(seal(make_folder("a", {"x": "1"}), kind="checkpoint"))
    other = seal(make_folder("b", {"x": "2"}), kind="checkpoint")
    there = open_store("there")
    shutil.copytree(other.path, there.cache.root / first.digest)
    assert (there.get(first.digest).path / "x").read_text() == "1"
    assert [path.joinpath("x").read_text() for path in there.cache.root.glob(".corrupt-*")] == ["2"]
