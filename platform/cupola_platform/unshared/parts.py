"""A job's checkpoints in the store, whose files come from several nodes.

`parts/<folder>@<digest>/<file>`: each node sends the files that it made. Whoever finds all of them there writes
`manifest.json`, so a checkpoint without one does not count, and nobody resumes from it.
"""

import logging
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cupola_platform.artifacts import MANIFEST, Artifact, Manifest, read
from cupola_platform.artifacts.elsewhere import Elsewhere, absent
from cupola_platform.artifacts.manifest import parse_manifest
from cupola_platform.artifacts.sealing import check_file
from cupola_platform.errors import CorruptArtifactError
from cupola_platform.unshared.contract import Contract
from cupola_platform.unshared.files import check_inside

if TYPE_CHECKING:
    from cupola_platform.store.plain import Objects

PARTS = "parts"
AT_ONCE = 4
"""Files that a node sends or fetches at once."""
LARGE = ".bin"
"""Suffix of the files that ranks read by range."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Whole:
    """A checkpoint that is complete in the store."""

    folder: str
    """Relative to the job's folder."""
    manifest: Manifest

    @property
    def name(self) -> str:
        return name_of(self.folder, self.manifest.digest)

    @property
    def step(self) -> int:
        return int(self.manifest.config.get("step", 0))


@dataclass(frozen=True)
class Made:
    """A sealed folder that this node has files of."""

    path: Path
    artifact: Artifact
    held: tuple[str, ...]


def location(contract: Contract, folder: Path, digest: str) -> str:
    """Where the store has a checkpoint of a job."""
    return f"{contract.section}/{PARTS}/{name_of(folder.relative_to(contract.folder).as_posix(), digest)}"


def name_of(folder: str, digest: str) -> str:
    """What a checkpoint is called below `parts`."""
    return f"{folder}@{digest}"


class Parts:
    """The checkpoints of one job."""

    def __init__(self, objects: "Objects", section: str, job: Path) -> None:
        self.objects, self.section, self.job = objects.under(PARTS), section, job
        self._whole: dict[str, Whole] = {}
        self._sent: set[str] = set()

    def whole(self) -> list[Whole]:
        """The complete checkpoints in the store, oldest first."""
        sealed = {name.removesuffix(f"/{MANIFEST}") for name in self.objects.sizes() if name.endswith(f"/{MANIFEST}")}
        self._whole = {name: self._whole.get(name) or self._read(name) for name in sealed}
        return sorted(self._whole.values(), key=lambda each: (each.step, each.manifest.created))

    def made(self) -> list["Made"]:
        """The sealed folders that this node has files of, newest first."""
        made = []
        for artifact in self.local():
            elsewhere = Elsewhere.read(artifact.path)
            held = elsewhere.held if elsewhere else tuple(file.path for file in artifact.manifest.files)
            if held:
                made.append(Made(artifact.path, artifact, held))
        return sorted(made, key=lambda each: each.path.name, reverse=True)

    def send(self, made: Sequence["Made"]) -> None:
        """Send what this node made and the store lacks, and complete the checkpoints whose other parts are there."""
        for each in made:
            if each.artifact.digest not in self._sent and self._send(each.artifact, each.held):
                self._sent.add(each.artifact.digest)

    def send_folder(self, folder: Path) -> None:
        """Send a sealed folder that is whole on this machine."""
        artifact = read(folder)
        self._send(artifact, [file.path for file in artifact.manifest.files])

    def drop(self, kept: Sequence[Path]) -> None:
        """Remove the store's checkpoints that a job has removed, but the newest one stays if it has removed all."""
        names = {path.relative_to(self.job).as_posix() for path in kept}
        series: dict[str, list[Whole]] = defaultdict(list)
        for each in self.whole():
            series[each.folder.rpartition("/")[0]].append(each)
        for stored in series.values():
            staying = [each for each in stored if each.folder in names] or stored[-1:]
            for each in stored:
                if each not in staying:
                    self.objects.remove([f"{each.name}/{MANIFEST}"])  # first, so that nobody reads half of it
                    self.objects.remove(f"{each.name}/{name}" for name in self.objects.under(each.name).sizes())

    def place(self, whole: Whole) -> None:
        """Put a checkpoint into this node's folder, without the files that ranks read by range."""
        folder = self.job / whole.folder
        small = [file.path for file in whole.manifest.files if not file.path.endswith(LARGE)]
        self._fetch(whole, folder, small)
        Elsewhere(at=f"{self.section}/{PARTS}/{whole.name}").write(folder)
        self.objects.download(f"{whole.name}/{MANIFEST}", folder / MANIFEST)

    def fetch(self, whole: Whole, folder: Path) -> None:
        """Fetch all files of a checkpoint into a folder that appears at once.

        Raises:
            CorruptArtifactError: a file is not what its manifest says.
        """
        partial = folder.with_name(f".{folder.name}.partial")
        self._fetch(whole, partial, [file.path for file in whole.manifest.files])
        self.objects.download(f"{whole.name}/{MANIFEST}", partial / MANIFEST)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)

    def local(self) -> Iterator[Artifact]:
        """The sealed folders of the job on this machine."""
        for manifest in sorted((*self.job.glob(f"*/{MANIFEST}"), *self.job.glob(f"*/step_*/{MANIFEST}"))):
            try:
                yield read(manifest.parent)
            except CorruptArtifactError:  # just removed
                continue

    def _send(self, artifact: Artifact, held: Sequence[str]) -> bool:
        """Send files and complete the checkpoint if the others are there. Returns whether it is complete."""
        name = name_of(artifact.path.relative_to(self.job).as_posix(), artifact.digest)
        there = self.objects.under(name).sizes()
        if MANIFEST in there:
            return True
        sizes = {file.path: file.size for file in artifact.manifest.files}
        lacking = [path for path in held if there.get(path, (-1, ""))[0] != sizes[path]]
        if gone := absent(artifact.path, lacking):
            log.warning("%s is gone before it was uploaded: %s", name, gone[0])
            return True
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for _ in pool.map(lambda path: self.objects.upload(f"{name}/{path}", artifact.path / path), lacking):
                pass
        there = self.objects.under(name).sizes()
        if any(there.get(path, (-1, ""))[0] != size for path, size in sizes.items()):
            return False
        self.objects.write(f"{name}/{MANIFEST}", (artifact.path / MANIFEST).read_bytes(), once=True)
        return True

    def _fetch(self, whole: Whole, folder: Path, paths: Sequence[str]) -> None:
        entries = {file.path: file for file in whole.manifest.files}

        def fetch(path: str) -> None:
            target = folder / path
            if not target.is_file() or target.stat().st_size != entries[path].size:
                self.objects.download(f"{whole.name}/{path}", target)
            check_file(target, entries[path])

        with ThreadPoolExecutor(AT_ONCE) as pool:
            for _ in pool.map(fetch, paths):
                pass

    def _read(self, name: str) -> Whole:
        folder, _, digest = check_inside(name).rpartition("@")
        return Whole(folder, parse_manifest(self.objects.read(f"{name}/{MANIFEST}"), name, digest=digest))
