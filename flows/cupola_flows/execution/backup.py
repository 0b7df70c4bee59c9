"""Copies of a running training job's checkpoints in the store, from which it resumes if its folder is empty, for
instance on another machine. The store keeps the same checkpoints as the job's folder.

A copy is an artifact of kind `progress`: the sealed checkpoint, and the other files that resuming needs. It is made of
hard links if the file system supports them, so the trainer may remove the checkpoint during the upload.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from cupola_platform import artifacts
from cupola_platform.artifacts import MANIFEST, Artifact
from cupola_platform.durable import link
from cupola_platform.errors import CorruptArtifactError
from cupola_platform.store import Store

KIND = "progress"
BESIDE = ("metrics.jsonl", "rollbacks.json", "reference.npz", "samples/*.jsonl")
"""Files of a job's folder that are copied with each checkpoint: metrics, skipped samples, log-probabilities of the
initial weights, and which samples were read."""


@dataclass(frozen=True)
class Uploaded:
    """A checkpoint that has just been uploaded."""

    name: str
    step: int
    bytes: int
    seconds: float
    location: str


def copy_name(checkpoint: Artifact) -> str:
    """Name of a checkpoint's copy; the checkpoint of a repeated step gets a new name."""
    return f"{checkpoint.path.name}-{checkpoint.id}"


def checkpoints(job: Path) -> dict[str, Artifact]:
    """The sealed checkpoints in a job's folder by `copy_name`, newest first."""
    sealed: dict[str, Artifact] = {}
    for folder in sorted((job / "checkpoints").glob("step_*"), reverse=True):
        try:
            checkpoint = artifacts.read(folder)
        except CorruptArtifactError:  # just removed, or incomplete: left to the trainer
            continue
        sealed[copy_name(checkpoint)] = checkpoint
    return sealed


class Backup:
    """The copies of one job's checkpoints. Only one process may change them at a time."""

    def __init__(self, store: Store, fingerprint: str, job: Path) -> None:
        """
        Args:
            fingerprint: the stage's; the same on every machine.
            job: the job's folder.
        """
        self.job = job
        self._staging = job.with_name(f"{job.name}.upload")
        self._cache = job.with_name(f"{job.name}.fetched")
        self._section = store.section(f"{KIND}/{fingerprint}-{job.name}", self._cache)
        self._digests: dict[str, str] | None = None
        self._torn: set[str] = set()

    def update(self) -> Uploaded | None:
        """Upload the newest checkpoint that the store lacks, and remove copies of checkpoints that the job has removed.

        Resumes interrupted uploads, also in a later process. At least one copy stays in the store, however far ahead
        training is.

        Raises:
            StoreError: the store refuses or cannot be reached; the next call retries.
        """
        local, stored = checkpoints(self.job), self._stored()
        attempts = (self._upload(name, checkpoint) for name, checkpoint in local.items() if name not in stored)
        done = next((uploaded for uploaded in attempts if uploaded), None)
        if local and stored:
            self._remove_but(local.keys() & stored.keys() or {max(stored)})
        for folder in self._staging.glob("*/"):
            if folder.name not in local:
                shutil.rmtree(folder)
        return done

    def restore(self, say: Callable[[str], None]) -> int | None:
        """Restore the newest complete copy into a job's folder that has no checkpoint.

        Returns:
            The step of the checkpoint; None if the folder already has one or the store has none.

        Raises:
            StoreError: the store refuses or cannot be reached.
        """
        if checkpoints(self.job):
            return None
        for name, digest in reversed(self._stored().items()):
            try:
                copy = artifacts.verify(self._section.get(digest).path)
            except CorruptArtifactError as error:
                say(f"skipping a corrupt uploaded checkpoint: {error}")
                continue
            self._place(copy, name)
            _empty(self._cache)
            step = int(copy.manifest.config["step"])
            say(f"resuming from step {step}, uploaded to {self._section.location(digest)}")
            return step
        return None

    def discard(self) -> None:
        """Remove every copy, once the stage's artifact is published. Raises StoreError."""
        self._section.clear()
        for folder in (self._staging, self._cache):
            shutil.rmtree(folder, ignore_errors=True)

    def _stored(self) -> dict[str, str]:
        """Name to digest of the complete copies, by step; read from the store once."""
        if self._digests is None:
            present = self._section.digests()
            manifests = [self._section.manifest(digest) for digest in present if self._section.holds(digest)]
            manifests.sort(key=lambda manifest: (manifest.config["step"], manifest.created))
            self._digests = {manifest.config["name"]: manifest.digest for manifest in manifests}
            self._torn = present - {*self._digests.values()}
        return self._digests

    def _remove_but(self, kept: AbstractSet[str]) -> None:
        """Remove all other copies, and incomplete uploads that this process will not resume."""
        stored = self._stored()
        for name in stored.keys() - kept:
            self._section.remove(stored.pop(name))
        for digest in self._torn - {artifact.digest for artifact in self._staged()}:
            self._section.remove(digest)
            self._torn.remove(digest)

    def _staged(self) -> Iterator[Artifact]:
        for manifest in self._staging.glob(f"*/{MANIFEST}"):
            yield artifacts.read(manifest.parent)

    def _upload(self, name: str, checkpoint: Artifact) -> Uploaded | None:
        began = time.monotonic()
        try:
            copy = self._stage(name, checkpoint)
        except FileNotFoundError:  # the trainer has just removed it
            shutil.rmtree(self._staging / name, ignore_errors=True)
            return None
        self._section.put(copy)
        _empty(self._cache)
        self._stored()[name] = copy.digest
        self._torn.discard(copy.digest)
        seconds = time.monotonic() - began
        location = self._section.location(copy.digest)
        return Uploaded(name, int(copy.manifest.config["step"]), copy.manifest.size, seconds, location)

    def _stage(self, name: str, checkpoint: Artifact) -> Artifact:
        """A sealed folder to upload; reuses one that an earlier process sealed."""
        folder = self._staging / name
        if (folder / MANIFEST).is_file():
            return artifacts.read(folder)
        shutil.rmtree(folder, ignore_errors=True)
        files = checkpoint.manifest.known
        for path in (*files, MANIFEST):
            link(checkpoint.path / path, folder / "checkpoint" / path)
        for beside in (each for pattern in BESIDE for each in self.job.glob(pattern)):
            target = folder / beside.relative_to(self.job)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(beside, target)
        config = {"name": name, "step": int(checkpoint.manifest.config["step"])}
        known = {f"checkpoint/{path}": entry for path, entry in files.items()}
        return artifacts.seal(folder, kind=KIND, config=config, known=known)

    def _place(self, copy: Artifact, name: str) -> None:
        """Write the checkpoint last, and rename it once it is complete, so that a killed restore starts again."""
        checkpoint = self.job / "checkpoints" / name.rpartition("-")[0]
        partial = checkpoint.with_name(f".{checkpoint.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        for file in copy.manifest.files:
            top, _, rest = file.path.partition("/")
            if top == "checkpoint":
                link(copy.path / file.path, partial / rest)
            else:
                target = self.job / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(copy.path / file.path, target)
        partial.rename(checkpoint)


def _empty(folder: Path) -> None:
    for entry in folder.glob("*/"):
        shutil.rmtree(entry)
