"""Artifacts in a local folder, one subfolder per digest."""

import errno
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cupola_platform.artifacts import Artifact, Manifest, read, verify
from cupola_platform.durable import sync_folder
from cupola_platform.errors import CorruptArtifactError, NotFoundError, StoreError

_REMOVED = ".removed-"


class LocalStore:
    """Artifacts at `root/<digest>/`.

    A sealed folder is renamed into place (copied if it is on another file system), so an artifact is never partial. Its
    files become read-only.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        with _refusals(root):
            root.mkdir(parents=True, exist_ok=True)

    def put(self, artifact: Artifact) -> Artifact:
        """Move a sealed folder in. If the store already has that digest, the folder is just removed.

        A stored copy that no longer verifies is renamed to `.corrupt-*` and replaced.

        Raises:
            StoreError: the folder cannot be written, or the disk is full.
        """
        target = self.root / artifact.digest
        with _refusals(target):
            if artifact.path.absolute() == target.absolute():
                return artifact
            if target.exists() and not self._set_aside_if_corrupt(target):
                shutil.rmtree(artifact.path)
                return self.get(artifact.digest)
            self._move(artifact.path, target)
            _make_read_only(target)
            sync_folder(self.root)
        return Artifact(target, artifact.manifest)

    def get(self, digest: str, *, partly: bool = False) -> Artifact:
        """The artifact, unverified: `artifacts.verify` reads every byte.

        Raises:
            NotFoundError: the store does not hold it.
            CorruptArtifactError: its manifest is missing, incomplete or belongs to another artifact.
        """
        folder = self.root / digest
        if not folder.is_dir():
            raise NotFoundError(f"The store {self.root} has no artifact {digest[:12]}. `cupola artifacts` lists them.")
        return read(folder, digest=digest)

    def holds(self, digest: str) -> bool:
        try:
            self.get(digest)
        except (NotFoundError, CorruptArtifactError):
            return False
        return True

    def manifest(self, digest: str) -> Manifest:
        return self.get(digest).manifest

    def digests(self) -> set[str]:
        return {entry.name for entry in os.scandir(self.root) if entry.is_dir() and not entry.name.startswith(".")}

    def location(self, digest: str) -> str:
        return str(self.root / digest)

    def section(self, name: str, cache: Path) -> "LocalStore":
        return LocalStore(self.root.parent / name)

    def sections(self, kind: str) -> set[str]:
        folder = self.root.parent / kind
        return {entry.name for entry in os.scandir(folder) if entry.is_dir()} if folder.is_dir() else set()

    def withdraw(self, digest: str) -> None:
        with _refusals(self.root / digest), suppress(FileNotFoundError):
            (self.root / digest).rename(self.root / f"{_REMOVED}{digest}-{time.time_ns()}")

    def sweep(self) -> None:
        for gone in self.root.glob(f"{_REMOVED}*"):
            shutil.rmtree(gone, ignore_errors=True)

    def remove(self, digest: str) -> None:
        self.withdraw(digest)
        self.sweep()

    def clear(self) -> None:
        with _refusals(self.root):
            shutil.rmtree(self.root)

    def _set_aside_if_corrupt(self, target: Path) -> bool:
        try:
            verify(target, digest=target.name)
        except CorruptArtifactError:
            target.rename(self.root / f".corrupt-{target.name}-{time.time_ns()}")
            return True
        return False

    def _move(self, source: Path, target: Path) -> None:
        try:
            source.rename(target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another process just published the same digest
                shutil.rmtree(source)
                return
            if error.errno != errno.EXDEV:
                raise
            staging = self.root / f".incoming-{target.name}-{os.getpid()}"
            shutil.rmtree(staging, ignore_errors=True)
            shutil.copytree(source, staging)
            self._move(staging, target)
            shutil.rmtree(source)


def _make_read_only(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"Cannot store {path}: {error.strerror}. Free space there, or set CUPOLA_HOME to another folder."
        ) from error
