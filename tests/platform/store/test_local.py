import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from cupola_platform.artifacts import Artifact, seal, verify
from cupola_platform.errors import CorruptArtifactError, NotFoundError, StoreError
from cupola_platform.store import LocalStore

MakeFolder = Callable[..., Path]


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def test_put_moves_a_folder_in_and_makes_its_files_read_only(store: LocalStore, make_folder: MakeFolder) -> None:
    sealed = seal(make_folder("a", {"b/x": "1"}), kind="tokens")
    stored = store.put(sealed)
    assert stored.path == store.root / sealed.digest
    assert not sealed.path.exists()
    assert store.get(sealed.digest) == verify(stored.path) == stored
    assert stat.S_IMODE((stored.path / "b/x").stat().st_mode) & 0o222 == 0
    assert store.digests() == {sealed.digest}


def test_the_same_content_is_kept_once_with_its_first_manifest(store: LocalStore, make_folder: MakeFolder) -> None:
    first = store.put(seal(make_folder("a", {"x": "1"}), kind="tokens", stage="first"))
    again = store.put(seal(make_folder("b", {"x": "1"}), kind="tokens", stage="second"))
    assert again.path == first.path
    assert again.manifest.stage == "first"
    assert len(store.digests()) == 1
    assert store.put(again) == again


def test_a_corrupt_copy_is_set_aside_when_the_content_is_made_again(store: LocalStore, make_folder: MakeFolder) -> None:
    first = store.put(seal(make_folder("a", {"x": "1"}), kind="tokens"))
    (first.path / "x").chmod(0o644)
    (first.path / "x").write_text("2")
    with pytest.raises(CorruptArtifactError):
        verify(store.get(first.digest).path)
    store.put(seal(make_folder("b", {"x": "1"}), kind="tokens"))
    assert (verify(store.get(first.digest).path).path / "x").read_text() == "1"
    assert [path.joinpath("x").read_text() for path in store.root.glob(".corrupt-*")] == ["2"]
    assert store.digests() == {first.digest}


def test_a_folder_on_another_file_system_is_copied_then_removed(make_folder: MakeFolder, tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system, as /dev/shm")
    store = LocalStore(memory / f"cupola-{tmp_path.name}")
    try:
        sealed = seal(make_folder("a", {"b/x": "1"}), kind="tokens")
        assert verify(store.put(sealed).path).digest == sealed.digest
        assert not sealed.path.exists()
        assert [path.name for path in store.root.iterdir()] == [sealed.digest]
    finally:
        shutil.rmtree(store.root)


def test_a_missing_artifact_is_one_line(store: LocalStore, tmp_path: Path) -> None:
    assert not store.holds("d" * 64)
    with pytest.raises(NotFoundError, match="has no artifact dddddddddddd"):
        store.get("d" * 64)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"Cannot store .*file/store: Not a directory"):
        LocalStore(tmp_path / "file/store")


def under(store_root: Path, sealed: Artifact, digest: str) -> None:
    """Put a valid artifact under another one's digest, as anyone with write access could."""
    shutil.rmtree(store_root / digest, ignore_errors=True)
    shutil.copytree(sealed.path, store_root / digest)


def test_another_artifact_under_a_digest_is_refused_and_set_aside(store: LocalStore, make_folder: MakeFolder) -> None:
    first = store.put(seal(make_folder("a", {"x": "1"}), kind="checkpoint"))
    other = seal(make_folder("b", {"x": "2"}), kind="checkpoint")
    under(store.root, other, first.digest)
    says = rf"manifest\.json belongs to artifact {other.id}, not to {first.id}\. Remove it"
    for ask in (store.get, store.manifest):
        with pytest.raises(CorruptArtifactError, match=says):
            ask(first.digest)
    assert not store.holds(first.digest)
    again = store.put(seal(make_folder("c", {"x": "1"}), kind="checkpoint"))
    assert (verify(again.path, digest=first.digest).path / "x").read_text() == "1"
    assert [path.joinpath("x").read_text() for path in store.root.glob(".corrupt-*")] == ["2"]
