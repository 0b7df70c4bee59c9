"""Seal a folder as an artifact, read an artifact, verify one."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cupola_platform.artifacts.digests import canonical_json, code_version, digest_file, digest_files
from cupola_platform.artifacts.elsewhere import ELSEWHERE, Elsewhere, absent
from cupola_platform.artifacts.environment import environment
from cupola_platform.artifacts.manifest import (
    FORMAT,
    MANIFEST,
    PARTIAL,
    Artifact,
    FileEntry,
    Manifest,
    parse_manifest,
    write_manifest,
)
from cupola_platform.errors import ConfigError, CorruptArtifactError

_OUR_CODE = ("cupola_platform", "cupola_trainer")


def seal(
    folder: Path,
    *,
    kind: str,
    parents: Sequence[str] = (),
    stage: str = "",
    recipe: str = "",
    fingerprint: str = "",
    config: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    known: Mapping[str, tuple[int, str]] | None = None,
    elsewhere: Mapping[str, tuple[int, str]] | None = None,
) -> Artifact:
    """Turn a folder into an artifact: hash and sync every file, then write `manifest.json`, replacing an older one.

    Args:
        parents: digests of the artifacts it was made from.
        config: plain JSON.
        known: size and digest, by relative path, of files that were hashed and synced as they were written.
        elsewhere: the same of files that other machines or the store hold; None for those that an earlier manifest of
            the folder names, if it says where they are (`Elsewhere`).

    Raises:
        CorruptArtifactError: the folder is empty, or contains a link or anything else that is not a plain file.
        ConfigError: a metric is not finite, or the config is not plain JSON.
    """
    here = [_entry(folder, path, (known or {}).get(path)) for path in _plain_files(folder)]
    elsewhere = _not_here(folder) if elsewhere is None else elsewhere
    there = [FileEntry(path=path, size=size, blake3=digest) for path, (size, digest) in elsewhere.items()]
    files = tuple(sorted((*here, *there), key=lambda file: file.path))
    if not files:
        raise CorruptArtifactError(f"{folder} has no files, so there is nothing to seal. Write the result there first.")
    manifest = Manifest(
        format=FORMAT,
        kind=kind,
        digest=digest_files((file.path, file.blake3) for file in files),
        files=files,
        parents=tuple(parents),
        stage=stage,
        recipe=recipe,
        fingerprint=fingerprint,
        config=json.loads(canonical_json(config or {})),
        metrics=_finite(metrics or {}),
        code_version=code_version(*_OUR_CODE),
        environment=environment(),
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
    write_manifest(folder, manifest)
    return Artifact(folder, manifest)


def read(folder: Path, *, digest: str | None = None) -> Artifact:
    """The artifact in a folder, without reading its files.

    Args:
        digest: the artifact expected; None accepts any.

    Raises:
        CorruptArtifactError: the manifest is missing, incomplete or inconsistent, or belongs to another artifact.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise CorruptArtifactError(f"{path} is missing, so the folder is not a finished artifact. Name another folder.")
    return Artifact(folder, parse_manifest(path.read_bytes(), str(path), digest=digest))


def verify(
    folder: Path, *, digest: str | None = None, share: tuple[int, int] = (0, 1), unread: str | None = None
) -> Artifact:
    """The artifact in a folder, after checking the size and digest of every file that is on this machine.

    Args:
        digest: the artifact expected; None accepts any.
        share: (i, n) reads only every n-th file from the i-th on, so that n processes can verify one artifact.
        unread: a subfolder that the caller does not use; only the presence of its files is checked.

    Raises:
        CorruptArtifactError: a file is missing, changed, a link or not in the manifest, or the manifest belongs to
            another artifact. Names the file.
    """
    artifact = read(folder, digest=digest)
    present = set(_plain_files(folder))
    partly = Elsewhere.read(folder) is not None
    used = [file.path for file in artifact.manifest.files if unread is None or not file.path.startswith(f"{unread}/")]
    first, every = share
    mine = set(used[first::every])
    for file in artifact.manifest.files:
        if file.path not in present:
            if partly:  # checked when it is fetched
                continue
            raise CorruptArtifactError(f"{folder / file.path} is missing. Make or fetch artifact {artifact.id} again.")
        if file.path in mine:
            check_file(folder / file.path, file)
        present.discard(file.path)
    if present:
        raise CorruptArtifactError(
            f"{folder / min(present)} is not in the manifest of artifact {artifact.id}. Remove it."
        )
    return artifact


def check_file(path: Path, expected: FileEntry) -> None:
    """Refuse a file whose size or digest is not the expected one.

    Raises:
        CorruptArtifactError: names the file and the mismatch.
    """
    size = path.stat().st_size
    if size != expected.size:
        raise CorruptArtifactError(f"{path} is corrupt: it has {size} bytes, the manifest says {expected.size}.")
    digest = digest_file(path)
    if digest != expected.blake3:
        raise CorruptArtifactError(
            f"{path} is corrupt: its digest is {digest[:12]}, the manifest says {expected.blake3[:12]}."
        )


def _plain_files(folder: Path) -> Iterator[str]:
    """Relative POSIX paths of all files in the folder except the manifest."""
    if not folder.is_dir():
        raise CorruptArtifactError(f"{folder} is not a folder.")
    for parent, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(parent, name)
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise CorruptArtifactError(
                    f"{path} is not a plain file, and an artifact holds nothing else. Copy what it points to."
                )
        for name in names:
            relative = Path(parent, name).relative_to(folder).as_posix()
            if relative not in (MANIFEST, PARTIAL, ELSEWHERE):
                yield relative


def _not_here(folder: Path) -> Mapping[str, tuple[int, str]]:
    if Elsewhere.read(folder) is None:
        return {}
    known = read(folder).manifest.known
    return {path: known[path] for path in absent(folder, list(known))}


def _entry(folder: Path, relative: str, known: tuple[int, str] | None) -> FileEntry:
    path = folder / relative
    if known and path.stat().st_size == known[0]:
        return FileEntry(path=relative, size=known[0], blake3=known[1])
    try:
        relative.encode()
    except UnicodeEncodeError:
        raise CorruptArtifactError(f"{path!r} has a name that is not UTF-8. Rename it.") from None
    digest = digest_file(path)
    with path.open("rb") as file:  # synced, so that a manifest never outlives the bytes it describes
        os.fsync(file.fileno())
    return FileEntry(path=relative, size=path.stat().st_size, blake3=digest)


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise ConfigError(f"Metric {name}={value} is not finite. Find out where it diverged before publishing.")
    return {name: float(value) for name, value in metrics.items()}
