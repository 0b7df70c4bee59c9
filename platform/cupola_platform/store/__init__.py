"""Where artifacts live. A store never overwrites, and what has no manifest does not exist."""

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
        """Take a sealed folder over; what comes back lies where the store keeps it on this machine."""

    def get(self, digest: str) -> Artifact:
        """An artifact on this machine, fetched when it is not. What lies under another's digest is refused, here and in
        `manifest`. Raises NotFoundError, CorruptArtifactError."""

    def holds(self, digest: str) -> bool:
        """Whether a whole artifact is there."""

    def manifest(self, digest: str) -> Manifest:
        """An artifact's manifest, its files left where they are. Raises NotFoundError, CorruptArtifactError."""

    def digests(self) -> set[str]:
        """Every digest that the store has heard of, unfinished uploads among them (`holds` tells)."""

    def location(self, digest: str) -> str:
        """Where an artifact lies, as a person would write it."""

    def section(self, name: str, cache: Path) -> "Store":
        """A store of its own beside the artifacts, for what is to be removed some day: work in progress.

        Args:
            name: may have slashes; the same wherever it is to be found again.
            cache: a folder of the section's own for what it has on this machine, where it lies on another one.
        """

    def remove(self, digest: str) -> None:
        """Take an artifact out of a section. From the first moment on it is not whole, so that nobody takes half of it.
        What is not there is left so."""

    def clear(self) -> None:
        """Take everything out of a section."""


def open_store(settings: Settings) -> Store:
    """The store that the settings name: S3, or a folder of the workspace.

    Raises:
        StoreError: the folder cannot be made.
    """
    if settings.store_url is None:
        return LocalStore(settings.home / "store" / "artifacts")
    from cupola_platform.store.s3 import S3Store  # boto3 takes a third of a second to import

    return S3Store(
        settings.store_url,
        cache=LocalStore(settings.home / "cache"),
        endpoint_url=settings.s3_endpoint_url,
        region=settings.s3_region,
    )
