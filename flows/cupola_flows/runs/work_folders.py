"""One stage at a time in a work folder, on this machine and on the cluster where its job was left."""

import fcntl
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from cupola_flows.execution.leasing import BusyError
from cupola_flows.servers.processes import jobs_in
from cupola_platform.errors import StageFailedError
from cupola_platform.launch import handle, tether
from cupola_platform.launch.handle import Handle
from cupola_platform.launch.launcher import make_launcher
from cupola_platform.workspace import Workspace

REMAINS_PATIENCE = tether.GRACE_SECONDS + 30
"""Seconds for the processes of a killed run to exit."""


@contextmanager
def locked(folder: Path, name: str, say: Callable[[str], None]) -> Iterator[None]:
    """Lock a work folder against other processes that run the same stage, and wait for ranks of a killed run, which
    save before they exit."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BusyError(
                f"stage {name} is being run by another process in {folder}. Wait for it, or stop it first."
            ) from None
        _wait_for_leftovers(folder, name, say)
        yield


def check_is_here(workspace: Workspace, folder: Path, left: Handle | None, name: str) -> None:
    """Refuse to run a stage whose job an earlier command started from another work folder, as on another machine: its
    results would never appear here."""
    if left is None or any(handle.read(path.parent) == left for path in folder.rglob(handle.FILE)):
        return
    if left.cluster in workspace.settings.clusters and _lives(workspace, left):
        raise StageFailedError(
            f"stage {name} runs as job {left.id} of cluster {left.cluster}, started from another workspace. Follow it "
            "there, or end the job first."
        )


def _lives(workspace: Workspace, left: Handle) -> bool:
    with tempfile.TemporaryDirectory() as empty:
        left.write(Path(empty))
        return make_launcher(workspace.settings, left.cluster).attach(Path(empty) / "job.json") is not None


def _wait_for_leftovers(folder: Path, name: str, say: Callable[[str], None]) -> None:
    remains = jobs_in(folder)
    if remains:
        say(f"stage {name}: waiting for processes of a killed run in {folder} to save and exit.")
        psutil.wait_procs(remains, timeout=REMAINS_PATIENCE)
        if left := jobs_in(folder):
            pids = ", ".join(str(process.pid) for process in left)
            raise StageFailedError(
                f"stage {name}: processes {pids} of a killed run are still working in {folder}. Stop them first."
            )
