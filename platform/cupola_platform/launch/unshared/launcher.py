"""Jobs on clusters whose nodes do not see this machine's folders: everything passes through the store.

`UnsharedLauncher` sits in front of a cluster's launcher. It sends the job's file and state, and brings metrics, logs
and results into the job's folder here as they appear, where whoever follows the job looks for them.
"""

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from cupola_platform.artifacts import MANIFEST
from cupola_platform.artifacts.elsewhere import Elsewhere
from cupola_platform.clusters import HOME, Cluster
from cupola_platform.durable import write_text
from cupola_platform.errors import ConfigError, NotFoundError, StoreError
from cupola_platform.launch import handle
from cupola_platform.launch.capacity import Capacity
from cupola_platform.launch.handle import STOP
from cupola_platform.launch.interface import Launcher, RunningJob
from cupola_platform.launch.local import GRACE_SECONDS
from cupola_platform.launch.polled import PolledJob
from cupola_platform.settings import Settings
from cupola_platform.unshared import references
from cupola_platform.unshared.agent import INPUTS
from cupola_platform.unshared.contract import Contract, section_of
from cupola_platform.unshared.files import LOG, REPORTS, RESULT, Files
from cupola_platform.unshared.parts import Parts

ENGINES = ("slurm", "kubernetes")
"""Files of a job's folder whose names begin like this belong to the engine."""
LOOK_EVERY = 2.0
"""Seconds between two looks at what the job has sent."""
FOLLOWED = ".log.json"
"""In a job's folder: the log that its lines go to, and how many bytes of them are there."""


def is_ranks(path: str) -> bool:
    """Whether the ranks of a job write this file of its folder; the others belong to what starts them."""
    return path not in (LOG, STOP, handle.FILE) and not path.startswith(ENGINES)


class Mirror:
    """A job's folder here, made to follow the one in the store."""

    def __init__(self, contract: Contract) -> None:
        self.folder = contract.folder
        self.objects = contract.objects()
        self.files = Files(self.objects, self.folder, lambda path: is_ranks(path) or path in (LOG, STOP))
        self.parts = Parts(self.objects, contract.section, self.folder)

    def look(self) -> None:
        """Bring everything new but the result. Raises StoreError."""
        self.files.pull(but={RESULT, *job_files(self.folder)})
        self._follow_log()

    def bring_result(self) -> None:
        """Bring what is left, and the folder that the result names before the result itself. Of a checkpoint, only the
        small files: whoever publishes it copies the others within the store.

        Raises:
            StoreError: the store cannot be reached.
            CorruptArtifactError: the last checkpoint is not what its manifest says.
        """
        self.look()
        result = self.files.get(RESULT)
        if result is None:
            return
        folder = json.loads(result)["folder"]
        whole = [each for each in self.parts.whole() if each.folder == folder]
        if whole and not (self.folder / folder / MANIFEST).exists():
            shutil.rmtree(self.folder / folder, ignore_errors=True)
            self.parts.place(whole[-1])
        write_text(self.folder / RESULT, result.decode())
        if not self.parts.whole():
            self.objects.remove(self.objects.sizes())  # nothing to resume from: the result is all there is

    def _follow_log(self) -> None:
        followed = Followed.read(self.folder)
        if followed is None or not (self.folder / LOG).exists():
            return
        with (self.folder / LOG).open("rb") as lines, Path(followed.log).open("ab") as log:
            inode = os.fstat(lines.fileno()).st_ino
            lines.seek(followed.at if inode == followed.inode else 0)
            log.write(lines.read())
            Followed(log=followed.log, inode=inode, at=lines.tell()).write(self.folder)


class UnsharedJob(PolledJob):
    """A running job whose folder here follows the one in the store."""

    def __init__(self, inner: RunningJob, contract: Contract) -> None:
        self.inner, self.mirror = inner, Mirror(contract)
        self._looked = float("-inf")
        self._status: int | None = None

    @property
    def name(self) -> str:
        """As a person would look for it."""
        return self.inner.name

    def waits(self) -> str | None:
        """Why the job has not started yet, in the engine's words; None once it has."""
        return self.inner.waits()

    def reason(self) -> str | None:
        """Why the job's engine ended it, in words."""
        return self.inner.reason()

    def poll(self) -> int | None:
        """The job's exit status once all its ranks have ended and its result is here, else None.

        Raises:
            StoreError: the job has ended, and the store cannot be reached.
            CorruptArtifactError: its last checkpoint is not what its manifest says.
        """
        if self._status is None:
            status = self.inner.poll()
            if status is not None:
                self.mirror.bring_result()
                self._status = status
            elif time.monotonic() - self._looked >= LOOK_EVERY:
                self._looked = time.monotonic()
                with suppress(StoreError):  # the next look may succeed
                    self.mirror.look()
        return self._status

    def stop(self, grace_seconds: float = GRACE_SECONDS) -> int:
        """Ask the ranks to save and exit; kill what is left after `grace_seconds`. Returns the exit status."""
        self.mirror.files.put(STOP, b"")
        self.inner.stop(grace_seconds)
        status = self.wait()
        assert status is not None
        return status


class UnsharedLauncher:
    """Starts jobs by a cluster's launcher on nodes that share no folder with this machine, nor with each other."""

    def __init__(self, inner: Launcher, name: str, cluster: Cluster, settings: Settings) -> None:
        self.inner, self.name, self.cluster, self.settings = inner, name, cluster, settings

    def check(self, processes: int) -> None:
        """Refuse a job that is too large, or a workspace without a store. Raises ConfigError."""
        if self.settings.store_url is None:
            raise ConfigError(
                f"Cluster {self.name} has shared = false, so its nodes need a store that all reach. Set store_url in "
                "cupola.toml."
            )
        self.inner.check(processes)

    def start(
        self, job_file: Path, *, processes: int, log: Path, env: Mapping[str, str] | None = None,
        fallbacks: Sequence[tuple[Path, int]] = (), restarts: int = 0,
    ) -> UnsharedJob:  # fmt: skip
        """Send a job's file, inputs and state, and start its ranks. Its output is appended to `log`.

        Raises:
            ConfigError: the job is too large, or reads a file that the nodes do not have.
            NotFoundError, StoreError: the store has not all inputs, or cannot be reached.
        """
        self.check(processes)
        contract = self._contract(job_file)
        sender = Sender(contract)
        for file in (job_file, *(file for file, _ in fallbacks)):
            sender.send_job(file)
        sender.send_state()
        log.parent.mkdir(parents=True, exist_ok=True)
        (contract.folder / LOG).unlink(missing_ok=True)  # of an earlier job, whose lines are in `log`
        Followed(log=str(log)).write(contract.folder)
        variables = {**(env or {}), **self._for_nodes(contract)}
        inner = self.inner.start(
            job_file, processes=processes, log=log, env=variables, fallbacks=fallbacks, restarts=restarts
        )
        return UnsharedJob(inner, contract)

    def attach(self, job_file: Path) -> UnsharedJob | None:
        """The running job that was started for this file earlier; None if there is none. Of one that has ended
        meanwhile, the result is brought here."""
        inner = self.inner.attach(job_file)
        if inner:
            return UnsharedJob(inner, self._contract(job_file))
        if handle.read(job_file.parent):
            Mirror(self._contract(job_file)).bring_result()
        return None

    def capacity(self) -> Capacity:
        """What could start now."""
        return self.inner.capacity()

    def _contract(self, job_file: Path) -> Contract:
        return contract_of(self.settings, job_file.parent, self.cluster.cache)

    def _for_nodes(self, contract: Contract) -> dict[str, str]:
        """The variables of a job's nodes, whose workspace may have another path."""
        home = self.cluster.home_on_nodes
        return {**contract.variables(), **({HOME: home} if home else {})}


def contract_of(settings: Settings, folder: Path, cache_gib: float = 0) -> Contract:
    """The contract of the job in a folder, for its nodes. Raises ConfigError for a folder outside the workspace."""
    if not folder.absolute().is_relative_to(settings.home):
        raise ConfigError(
            f"{folder} is outside the workspace {settings.home}, so nodes without a shared folder cannot have it. "
            "Use a folder in the workspace."
        )
    relative = folder.absolute().relative_to(settings.home).as_posix()
    return Contract(settings=settings, section=section_of(relative), relative=relative, cache_gib=cache_gib)


def clear(settings: Settings, folder: Path) -> None:
    """Remove from the store what the nodes of the jobs in a folder exchanged, once all results are published. Raises
    StoreError."""
    if settings.store_url is not None:
        objects = contract_of(settings, folder).objects()
        objects.remove(objects.sizes())


class Sender:
    """Sends what a job starts from to the store."""

    def __init__(self, contract: Contract) -> None:
        self.contract, self.top = contract, contract.top()
        self.objects = self.top.under(contract.section)
        self.files = Files(self.objects, contract.folder, lambda path: True)
        self.parts = Parts(self.objects, contract.section, contract.folder)

    def send_job(self, file: Path) -> None:
        """Send a job's file, and the files that it names below the workspace."""
        written = references.write(file.read_text(), self.contract.home, self.contract.folder)
        for digest in sorted(written.artifacts):
            try:
                self.top.read(f"artifacts/{digest}/{MANIFEST}")
            except NotFoundError:
                raise NotFoundError(
                    f"Artifact {digest[:12]} is not in the store, so the nodes cannot fetch it. Make it again with "
                    "store_url set."
                ) from None
        home = self.contract.home
        paths = [home / relative for relative in sorted(written.sent)]
        files = [each for path in paths for each in (path.rglob("*") if path.is_dir() else [path]) if each.is_file()]
        self.objects.under(INPUTS).upload({each.relative_to(home).as_posix(): each for each in files})
        self.files.put(file.name, written.text.encode())

    def send_state(self) -> None:
        """Let the nodes resume from the newest checkpoint, whether it is here or in the store."""
        ended = {*REPORTS, *(path for path in self.files.names() if not is_ranks(path))}
        self.files.remove(ended)
        self.files.concerns = lambda path: is_ranks(path) and path not in REPORTS
        own = job_files(self.contract.folder)
        sealed = [each for each in self.parts.local() if each.path.parent.name == "checkpoints"]
        here = [each for each in sealed if Elsewhere.read(each.path) is None]
        newest = max(here, key=lambda each: each.path.name, default=None)
        there = [each.step for each in self.parts.whole() if each.folder.startswith("checkpoints/")]
        if newest and int(newest.manifest.config["step"]) > max(there, default=-1):
            self.files.push(but=own)
            self.parts.send_folder(newest.path)
        elif self.files.names() - own:
            self.files.pull(but=own)
        else:
            self.files.push(but=own)


@dataclass(frozen=True, kw_only=True)
class Followed:
    """Where a job's printed lines go on this machine."""

    log: str
    inode: int = 0
    """Of the file that the lines come from, which is replaced when the job starts again."""
    at: int = 0
    """Bytes of that file that are there."""

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        try:
            return cls(**json.loads((folder / FOLLOWED).read_bytes()))
        except FileNotFoundError:
            return None

    def write(self, folder: Path) -> None:
        write_text(folder / FOLLOWED, json.dumps(asdict(self)))


def job_files(folder: Path) -> set[str]:
    """The files of a folder that describe a job, which nodes get with other paths in them."""
    return {path.name for path in folder.glob("job*.json")}
