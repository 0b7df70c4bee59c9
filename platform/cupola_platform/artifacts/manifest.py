"""The contents of `manifest.json`, and how it is read back without trusting it."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from cupola_platform.artifacts.digests import digest_files
from cupola_platform.durable import sync_folder
from cupola_platform.errors import CorruptArtifactError

MANIFEST = "manifest.json"
PARTIAL = ".manifest.json.partial"
ID_LENGTH = 12
FORMAT = 2
"""Of manifests and of the files that artifacts of each kind hold. Version 0.1 wrote none."""

_CHECKED = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True, config=_CHECKED)
class FileEntry:
    """One file of an artifact."""

    path: str
    """Relative to the artifact's folder, with forward slashes."""
    size: int
    """Bytes."""
    blake3: str
    """Hex digest."""


@dataclass(frozen=True, kw_only=True, config=_CHECKED)
class Manifest:
    """What an artifact is, and what it was made from and by."""

    format: int = 0
    """See `FORMAT`."""
    kind: str
    digest: str
    """BLAKE3 over the sorted lines `path NUL file-digest`."""
    files: tuple[FileEntry, ...]
    parents: tuple[str, ...] = ()
    """Digests of the artifacts it was made from."""
    stage: str = ""
    recipe: str = ""
    fingerprint: str = ""
    config: dict[str, Any]
    metrics: dict[str, float]
    code_version: str
    environment: dict[str, str]
    created: str
    """ISO 8601, UTC."""

    @property
    def size(self) -> int:
        """Total bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def known(self) -> dict[str, tuple[int, str]]:
        """Size and digest of every file by path, as `seal` takes them."""
        return {file.path: (file.size, file.blake3) for file in self.files}


@dataclass(frozen=True)
class Artifact:
    """A sealed folder on this machine."""

    path: Path
    manifest: Manifest

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def id(self) -> str:
        """The first 12 characters of the digest."""
        return self.manifest.digest[:ID_LENGTH]

    @property
    def kind(self) -> str:
        return self.manifest.kind

    @property
    def metrics(self) -> dict[str, float]:
        return self.manifest.metrics


_MANIFEST = TypeAdapter(Manifest)


def parse_manifest(text: bytes, name: str, *, digest: str | None = None) -> Manifest:
    """The manifest in `text`; error messages call it `name`.

    Args:
        digest: the artifact expected; None accepts any.

    Raises:
        CorruptArtifactError: the text is no manifest, its files do not match its digest, a path leads out of the
            artifact's folder or is a folder of another path, or the artifact is not the expected one.
    """
    try:
        manifest = _MANIFEST.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise CorruptArtifactError(f"{name} is incomplete or not a manifest: {where}: {first['msg']}.") from None
    if manifest.format != FORMAT:
        raise CorruptArtifactError(
            f"{name} was written by another version of Cupola: its format is {manifest.format or 1}, this version "
            f"reads {FORMAT}. Make the artifact again."
        )
    _refuse_unsafe([file.path for file in manifest.files], name)
    if digest_files((file.path, file.blake3) for file in manifest.files) != manifest.digest:
        raise CorruptArtifactError(
            f"{name} was changed: its digest {manifest.digest[:ID_LENGTH]} does not match its files."
        )
    if digest is not None and manifest.digest != digest:
        raise CorruptArtifactError(
            f"{name} belongs to artifact {manifest.digest[:ID_LENGTH]}, not to {digest[:ID_LENGTH]}. "
            "Remove it, and make or fetch the artifact again."
        )
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` under a temporary name, sync it, rename it, and sync the folder."""
    partial = folder / PARTIAL
    with partial.open("w", encoding="utf-8") as out:
        json.dump(asdict(manifest), out, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
        out.flush()
        os.fsync(out.fileno())
    partial.replace(folder / MANIFEST)
    sync_folder(folder)


def _refuse_unsafe(paths: Sequence[str], name: str) -> None:
    for path in paths:
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or "\0" in path or PurePosixPath(path).as_posix() != path:
            raise CorruptArtifactError(f"{name} names a file outside its folder: {path!r}. Do not use this artifact.")
    folders = {parent.as_posix() for path in paths for parent in PurePosixPath(path).parents}
    if twice := [path for path, count in Counter(paths).items() if count > 1 or path in folders]:
        raise CorruptArtifactError(f"{name} names {twice[0]!r} twice. Do not use this artifact.")
