"""`cupola gc`: removes what nothing needs. What is kept is in docs/operations.md."""

import fcntl
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from cupola_flows.clusters.probing import PROBE
from cupola_flows.execution.backup import KIND as COPIES
from cupola_flows.servers.processes import jobs_in
from cupola_platform.errors import CorruptArtifactError, NotFoundError
from cupola_platform.launch.unshared.launcher import contract_of
from cupola_platform.unshared.contract import section_of
from cupola_platform.workspace import Workspace

LATELY = timedelta(hours=1)
"""What was used within this time is kept whatever a person asks for: commands that make no run, such as a generation,
say only when they begin to read."""
_REMOVED = ".removed-"


@dataclass(frozen=True)
class Removed:
    """Something that was removed, or would be."""

    what: Literal["artifact", "work folder", "checkpoint copies", "job files"]
    name: str
    """An artifact's id, or the beginning of a stage's fingerprint or of a probe's name."""
    about: str
    """An artifact's kind and stage."""
    bytes: int


def collect_garbage(ws: Workspace, *, older_than: timedelta, dry_run: bool) -> Iterator[Removed]:
    """Remove what nothing needs, one thing after the other; a killed collection is continued by the next one.

    Args:
        older_than: only what nobody used for so long.

    Raises:
        StoreError, RegistryError: the store or the registry refuses or cannot be reached.
    """
    ws.registry.sweep_lost_runs()
    before = ws.registry.retention.now() - max(older_than, LATELY)
    yield from _work_folders(ws, before, dry_run)
    yield from _checkpoint_copies(ws, dry_run)
    yield from _job_files(ws, before, dry_run)
    yield from _artifacts(ws, before, dry_run)


def _artifacts(ws: Workspace, before: datetime, dry_run: bool) -> Iterator[Removed]:
    retention = ws.registry.retention
    if dry_run:
        gone = retention.pending() + retention.unneeded(before)
    else:
        retention.collect(before)
        gone = retention.pending()
    for each in gone:
        if not dry_run:
            with retention.removing(each.digest) as stands:
                if not stands:  # just made again
                    continue
                ws.store.withdraw(each.digest)
        yield Removed("artifact", each.digest[:12], f"{each.kind} {each.stage}".strip(), each.size)
    if not dry_run:
        ws.store.sweep()


def _work_folders(ws: Workspace, before: datetime, dry_run: bool) -> Iterator[Removed]:
    """Those of stages whose artifact is there, untouched since `before`: the console reads curves and logs in them."""
    work = ws.folder("work")
    for folder in sorted(path for path in work.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if ws.registry.made_by(folder.name) is None or _touched(folder) >= before.timestamp():
            continue
        with _claimed(ws, folder, dry_run) as ours:
            if ours:
                size = _size(folder)
                if not dry_run:
                    folder.rename(work / f"{_REMOVED}{folder.name}-{time.time_ns()}")
                yield Removed("work folder", folder.name[:12], "", size)
    if not dry_run:
        for gone in work.glob(f"{_REMOVED}*"):
            shutil.rmtree(gone, ignore_errors=True)


def _checkpoint_copies(ws: Workspace, dry_run: bool) -> Iterator[Removed]:
    """Those of stages whose artifact is there."""
    for name in sorted(ws.store.sections(COPIES)):
        fingerprint = name.partition("-")[0]
        if ws.registry.made_by(fingerprint) is None:
            continue
        with TemporaryDirectory() as cache, _claimed(ws, ws.root / "work" / fingerprint, dry_run) as ours:
            if not ours:
                continue
            section = ws.store.section(f"{COPIES}/{name}", Path(cache))
            size = 0
            for digest in section.digests():
                with suppress(NotFoundError, CorruptArtifactError):  # a torn upload
                    size += section.manifest(digest).size
            if not dry_run:
                section.clear()
            yield Removed("checkpoint copies", fingerprint[:12], "", size)


def _job_files(ws: Workspace, before: datetime, dry_run: bool) -> Iterator[Removed]:
    """What jobs whose nodes share no folder left in the store: those of stages whose artifact is there, as any other
    stage may be continued, and probes that wrote nothing since `before`."""
    names = ws.store.sections(section_of("work"))
    if not names:
        return
    work = contract_of(ws.settings, ws.root / "work").objects()
    for name in sorted(names):
        folder, objects = ws.root / "work" / name, work.under(name)
        if name.startswith(PROBE):
            changed = None if folder.exists() else objects.changed()
            claim: AbstractContextManager[bool] = nullcontext(changed is not None and changed < before)
        elif ws.registry.made_by(name) is None:
            continue
        else:
            claim = _claimed(ws, folder, dry_run)
        with claim as ours:
            if ours and (sizes := objects.sizes()):  # some servers list empty folders
                if not dry_run:
                    objects.remove(sizes)
                yield Removed("job files", name[:12], "", sum(size for size, _ in sizes.values()))


@contextmanager
def _claimed(ws: Workspace, folder: Path, dry_run: bool) -> Iterator[bool]:
    """Keep every command on every machine from running the stage of a work folder while the block runs; False if one
    runs it."""
    fingerprint = folder.name
    if dry_run:
        yield fingerprint not in {lease.fingerprint for lease in ws.registry.leases.all()} and not jobs_in(folder)
        return
    lease = ws.registry.leases.of(fingerprint)
    holder = uuid.uuid4().hex
    with ExitStack() as stack:
        lock = stack.enter_context(folder.with_suffix(".lock").open("w"))
        ours = lease is None or not lease.job
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            ours = False
        if ours:
            ours = ws.registry.leases.take(fingerprint, holder).holder == holder
            stack.callback(ws.registry.leases.release, fingerprint, holder, job_goes_on=False)
        yield ours and not jobs_in(folder)


def _touched(folder: Path) -> float:
    """When anything in a folder last changed, in Unix seconds."""
    return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
