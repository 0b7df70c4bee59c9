"""Cancels the runs of a workspace's servers for `cupola down`: each saves, and is marked as cancelled everywhere."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import httpx
import psutil

from cupola_flows.servers.sweeping import FlowRun, Sweeper, processes_of
from cupola_platform.errors import CupolaError, ServiceError
from cupola_platform.workspace import Workspace

GRACE = 60.0
"""Seconds for runs to finish a step, save, and update the registry, Prefect and MLflow."""


@contextmanager
def runs_cancelled(workspace: Workspace, client: httpx.Client, *, submitted_only: bool) -> Iterator[list[str]]:
    """Stop the runs of a workspace, wait for them, and yield their names. The caller stops the worker, with any process
    that is left, inside the block; on exit all of the runs are marked as cancelled.

    Args:
        submitted_only: leave runs of commands alone, because the server keeps running.

    Raises:
        ServiceError, RegistryError: the runs cannot be listed. The next sweep finds them.
    """
    sweeper = Sweeper(workspace, client)
    try:
        runs = [run for run in sweeper.living() if run["deployment_id"] or not submitted_only]
    except httpx.HTTPError as error:
        raise ServiceError(f"Prefect's server cannot list its runs ({type(error).__name__}).") from None
    _interrupt(runs)
    yield sorted(run["name"] for run in runs if run["parent_task_run_id"] is None)
    with suppress(httpx.HTTPError, CupolaError):
        sweeper.cancel(runs)


def _interrupt(runs: Sequence[FlowRun]) -> None:
    pids = {pid for run in runs for pid in processes_of(run)} - {os.getpid()}
    processes = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.ppid() not in pids:  # a run stops its own child processes
                process.send_signal(signal.SIGTERM)
            processes.append(process)
    psutil.wait_procs(processes, timeout=GRACE)
