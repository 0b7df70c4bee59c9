"""Ends a run, also one that no command follows any more."""

import os
import signal
import socket
import time
from collections.abc import Iterator

from cupola_platform.errors import ConfigError, ServiceError
from cupola_platform.launch.living import forget_jobs, living_job
from cupola_platform.liveness import lives
from cupola_platform.registry import RunRow
from cupola_platform.workspace import Workspace

GRACE = 120.0
"""Seconds for a job to finish a step and save."""
TO_RECORD = 60.0
"""Seconds for the command that follows a run to record its end."""


def cancel_run(workspace: Workspace, run: str, grace: float = GRACE) -> Iterator[str]:
    """End a run and yield a line for each thing that was done.

    Args:
        run: id of a stage's run or of a whole recipe's.

    Raises:
        NotFoundError: no such run.
        ConfigError: it has ended, or it runs on another machine without a job on a cluster.
        ServiceError: its cluster does not answer; nothing was changed.
    """
    workspace.registry.sweep_lost_runs()
    row = workspace.registry.run(run)
    if row.continued:
        raise ConfigError(f"Run {run} is {row.error}. Cancel that one, or the newest of them: cupola runs.")
    if row.status not in ("running", "detached"):
        raise ConfigError(f"Run {run} is {row.label}: there is nothing to cancel.")
    rows = [row] if row.stage else [row, *workspace.registry.runs(parent=row.id)]
    unfinished = [each for each in rows if each.status in ("running", "detached")]
    ended = False
    for each in unfinished:
        if each.work_folder and (job := living_job(workspace.settings, each.work_folder)):
            yield f"{each.stage}: asking {job.name} to save and end (at most {grace:.0f} s)."
            job.stop(grace)
            yield f"{each.stage}: {job.name} has ended."
            ended = True
    if row.status == "detached":
        for each in unfinished:
            if each.work_folder:
                forget_jobs(each.work_folder)
                workspace.registry.leases.forget_job(each.work_folder.name)
            workspace.registry.finish_run(each.id, "cancelled", error=f"cancelled by cupola cancel {run}.")
        _end_whole(workspace, row)
    else:
        _end_process(workspace, row, interrupt=not ended)
    yield f"Run {run} is cancelled. Finished work is kept. Run the same command to resume."


def _end_whole(workspace: Workspace, row: RunRow) -> None:
    """End the detached run of a recipe whose last stage that went on was ended by its own id."""
    whole = workspace.registry.run(row.parent_id) if row.parent_id else row
    if whole.status == "detached" and all(
        each.status not in ("running", "detached") for each in workspace.registry.runs(parent=whole.id)
    ):
        workspace.registry.finish_run(whole.id, "cancelled", error=f"cancelled by cupola cancel {row.id}.")


def _end_process(workspace: Workspace, row: RunRow, *, interrupt: bool) -> None:
    """Wait for the command that follows a run to end by itself, or interrupt it first."""
    here = row.host == socket.gethostname()
    if interrupt:
        if not here:
            raise ConfigError(f"Run {row.id} runs as process {row.pid} on {row.host}. Cancel it there.")
        if lives(row.pid, row.process_start):
            os.kill(row.pid, signal.SIGINT)
    until = time.monotonic() + TO_RECORD
    while workspace.registry.run(row.id).status == "running":
        if here and not lives(row.pid, row.process_start):
            workspace.registry.sweep_lost_runs()
            return
        if time.monotonic() > until:
            raise ServiceError(f"Run {row.id}: process {row.pid} on {row.host} has not ended within {TO_RECORD:.0f} s.")
        time.sleep(0.2)
