"""Where artifacts are stored. A store never overwrites, and a folder without a manifest does not count."""

from pathlib import Path
from typing import Protocol

from cupola_platform.artifacts import Artifact, Manifest
from cupola_platform.settings import Settings
from cupola_platform.store.local import LocalStore

FINGERPRINTED = False  # keeps artifacts

__all__ = ["LocalStore", "Store", "open_store"]


class Store(Protocol):
    """Artifacts by digest."""

    def put(self, artifact: Artifact) -> Artifact:
        """Take over a sealed folder, and return the artifact at its place in the store or its cache. Files that are in
        the store only (`Elsewhere`) stay there, until `get` fetches them."""

    def get(self, digest: str, *, partly: bool = False) -> Artifact:
        """An artifact on this machine, fetched if needed. Here and in `manifest`, an artifact stored under another
        one's digest is refused. With `partly`, one that was put here without all of its files stays so. Raises
        NotFoundError, CorruptArtifactError."""

    def holds(self, digest: str) -> bool:
        """Whether the complete artifact is there."""

    def manifest(self, digest: str) -> Manifest:
        """An artifact's manifest, without fetching its files. Raises NotFoundError, CorruptArtifactError."""

    def digests(self) -> set[str]:
        """Every digest in the store, including unfinished uploads (`holds` tells them apart)."""

    def location(self, digest: str) -> str:
        """Where an artifact is stored, for display."""

    def section(self, name: str, cache: Path) -> "Store":
        """A separate store beside the artifacts for work in progress, which is removed later.

        Args:
            name: identifies the section on every machine; may contain slashes.
            cache: a local folder for this section only, used if the store is remote.
        """

    def sections(self, kind: str) -> set[str]:
        """Names below `kind/` of the sections that hold anything."""

    def withdraw(self, digest: str) -> None:
        """Take an artifact out if it is there, at once or manifest first, so that nobody reads half of it. Local bytes
        are freed by `sweep`."""

    def sweep(self) -> None:
        """Free the bytes of what was withdrawn, also by a process that was killed."""

    def remove(self, digest: str) -> None:
        """Withdraw an artifact and free its bytes."""

    def clear(self) -> None:
        """Remove everything from a section."""


def open_store(settings: Settings) -> Store:
    """The store given by the settings: S3, or a folder of the workspace.

    Raises:
        StoreError: the folder cannot be created.
    """
    if settings.store_url is None:
        return LocalStore(settings.home / "store" / "artifacts")
    from cupola_platform.store.s3 import S3Store  # boto3 takes a third of a second to import

    return S3Store(
        settings.store_url,
        cache=LocalStore(settings.home / "cache"),
        endpoint_url=settings.s3_endpoint_url,
        region=settings.s3_region,
        cache_size=None if settings.cache_size is None else int(settings.cache_size * (1 << 30)),
    )
