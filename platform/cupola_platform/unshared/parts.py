"""A job's checkpoints in the store, whose files come from several nodes.

`parts/<folder>@<digest>/<file>`: each node sends the files that it made. Whoever finds all of them there writes
`manifest.json`, so a checkpoint without one does not count, and nobody resumes from it.
"""

import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cupola_platform.artifacts import MANIFEST, Artifact, Manifest, read
from cupola_platform.artifacts.blocks import LARGE
from cupola_platform.artifacts.elsewhere import Elsewhere
from cupola_platform.artifacts.manifest import parse_manifest
from cupola_platform.artifacts.sealing import check_file
from cupola_platform.durable import link
from cupola_platform.errors import CorruptArtifactError
from cupola_platform.unshared.contract import Contract
from cupola_platform.unshared.files import check_inside

if TYPE_CHECKING:
    from cupola_platform.store.plain import Objects

PARTS = "parts"
AT_ONCE = 4
"""Files that a node fetches at once."""
STAGED = ".upload"
"""Folder of a job's folder with what is on its way to the store."""


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

    name: str
    artifact: Artifact
    held: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Relative to the job's folder."""
        return self.name.rpartition("@")[0]


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
        self._seen: set[str] = set()
        self._staged: dict[str, Made] = {}

    def whole(self) -> list[Whole]:
        """The complete checkpoints in the store, oldest first."""
        sealed = {name.removesuffix(f"/{MANIFEST}") for name in self.objects.sizes() if name.endswith(f"/{MANIFEST}")}
        self._whole = {name: self._whole.get(name) or self._read(name) for name in sealed}
        return sorted(self._whole.values(), key=lambda each: (each.step, each.manifest.created))

    def made(self) -> list["Made"]:
        """The sealed folders that this node has files of, oldest first."""
        made = []
        for artifact in self.local():
            elsewhere = Elsewhere.read(artifact.path)
            held = elsewhere.held if elsewhere else tuple(file.path for file in artifact.manifest.files)
            if held:
                made.append(Made(self._name(artifact), artifact, held))
        return made

    def stage(self) -> None:
        """Keep this node's files of new checkpoints, as hard links, until they are in the store: training goes on and
        may remove the checkpoints before."""
        for each in self.made():
            if each.name in self._seen:
                continue
            self._seen.add(each.name)
            folder = self.job / STAGED / each.name
            try:
                for path in (*each.held, MANIFEST):
                    link(each.artifact.path / path, folder / path)
                self._staged[each.name] = Made(each.name, read(folder), each.held)
            except (FileNotFoundError, CorruptArtifactError):  # just removed
                shutil.rmtree(folder, ignore_errors=True)

    def unstage(self) -> None:
        """Forget what an earlier start did not send."""
        shutil.rmtree(self.job / STAGED, ignore_errors=True)

    def send(self) -> None:
        """Send what was staged, and complete the checkpoints whose other parts are there."""
        while each := self._next():
            self._send(each)
            self._drop_staged(each)

    def _next(self) -> "Made | None":
        """The next checkpoint to send: the oldest that another node has begun, so that all nodes send the same one, or
        else the newest. Those that an uploaded one replaces, or that were rolled back, are not sent."""
        newest = {_series(each.folder): each.folder for each in self.whole()}
        local = {self._name(each) for each in self.local()}
        for each in [*self._staged.values()]:
            if each.folder <= newest.get(_series(each.folder), "") or not _is_wanted(each, local):
                self._drop_staged(each)
        waiting = sorted(self._staged.values(), key=lambda each: each.folder)
        begun = {_checkpoint(name) for name in self.objects.sizes()}
        return next((each for each in waiting if each.name in begun), waiting[-1] if waiting else None)

    def _drop_staged(self, each: "Made") -> None:
        del self._staged[each.name]
        shutil.rmtree(self.job / STAGED / each.name, ignore_errors=True)

    def send_folder(self, folder: Path) -> None:
        """Send a sealed folder that is whole on this machine."""
        artifact = read(folder)
        self._send(Made(self._name(artifact), artifact, tuple(file.path for file in artifact.manifest.files)))

    def drop(self, kept: Sequence[Path]) -> None:
        """Remove the store's checkpoints that a job has removed, but the newest one stays if it has removed all."""
        names = {path.relative_to(self.job).as_posix() for path in kept}
        series: dict[str, list[Whole]] = defaultdict(list)
        for each in self.whole():
            series[_series(each.folder)].append(each)
        for stored in series.values():
            staying = [each for each in stored if each.folder in names] or stored[-1:]
            for each in stored:
                if each not in staying:
                    self._remove(each.name)
        newest = {_series(each.folder): each.folder for each in self.whole()}
        for name in {_checkpoint(name) for name in self.objects.sizes()} - self._whole.keys():
            folder = name.rpartition("@")[0]
            if folder <= newest.get(_series(folder), ""):  # nobody will complete it
                self._remove(name)

    def _remove(self, name: str) -> None:
        self.objects.remove([f"{name}/{MANIFEST}"])  # first, so that nobody reads half of it
        self.objects.remove(f"{name}/{path}" for path in self.objects.under(name).sizes())

    def place(self, whole: Whole) -> None:
        """Put a checkpoint into this node's folder, without the files that ranks read by range."""
        folder = self.job / whole.folder
        small = [file.path for file in whole.manifest.files if not file.path.endswith(LARGE)]
        self._fetch(whole, folder, small)
        Elsewhere(at=f"{self.section}/{PARTS}/{whole.name}").write(folder)
        self.objects.download(f"{whole.name}/{MANIFEST}", folder / MANIFEST)

    def local(self) -> Iterator[Artifact]:
        """The sealed folders of the job on this machine."""
        for manifest in sorted((*self.job.glob(f"*/{MANIFEST}"), *self.job.glob(f"*/step_*/{MANIFEST}"))):
            if manifest.relative_to(self.job).parts[0].startswith("."):  # not yet complete
                continue
            try:
                yield read(manifest.parent)
            except (CorruptArtifactError, FileNotFoundError):  # just removed
                continue

    def _name(self, artifact: Artifact) -> str:
        return name_of(artifact.path.relative_to(self.job).as_posix(), artifact.digest)

    def _send(self, each: "Made") -> None:
        """Send files, and complete the checkpoint if the others are there."""
        there = self.objects.under(each.name).sizes()
        if MANIFEST in there:
            return
        sizes = {file.path: file.size for file in each.artifact.manifest.files}
        folder = each.artifact.path
        lacking = [path for path in each.held if there.get(path, (-1, ""))[0] != sizes[path]]
        self.objects.upload({f"{each.name}/{path}": folder / path for path in lacking})
        there = self.objects.under(each.name).sizes()
        whole = all(there.get(path, (-1, ""))[0] == size for path, size in sizes.items())
        if whole and _is_wanted(each, {self._name(artifact) for artifact in self.local()}):
            self.objects.write(f"{each.name}/{MANIFEST}", (folder / MANIFEST).read_bytes(), once=True)

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


def _checkpoint(name: str) -> str:
    """The checkpoint that an object below `parts` belongs to."""
    folder, _, rest = name.rpartition("@")
    return f"{folder}@{rest.partition('/')[0]}"


def _series(folder: str) -> str:
    """What a job keeps one checkpoint of after the other."""
    return folder.rpartition("/")[0]


def _is_wanted(each: Made, local: AbstractSet[str]) -> bool:
    """Whether a checkpoint is still this node's, or was removed because there are newer ones: not if the job went back
    to an earlier one.

    Args:
        local: names of the checkpoints in the job's folder.
    """
    if each.name in local:
        return True
    series = {name.rpartition("@")[0] for name in local if _series(name) == _series(each.folder)}
    return each.folder not in series and any(folder > each.folder for folder in series)
