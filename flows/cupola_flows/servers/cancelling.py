"""How `cupola down` ends the runs that its servers carry: each saves, and is cancelled in every record."""

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
"""Seconds that runs have to finish a step, save, and tell the registry, Prefect and MLflow."""


@contextmanager
def runs_cancelled(workspace: Workspace, client: httpx.Client, *, submitted_only: bool) -> Iterator[list[str]]:
    """Ask the runs of a workspace to end and wait until they have; gives their names. What is left of them ends within
    the block, with its worker; on the way out all of them are said to be cancelled.

    Args:
        submitted_only: whether a command that uses the server is left alone: the server stays.

    Raises:
        ServiceError, RegistryError: nobody can be asked which there are. The next sweep finds them.
    """
    sweeper = Sweeper(workspace, client)
    try:
        runs = [run for run in sweeper.living() if run["deployment_id"] or not submitted_only]
    except httpx.HTTPError as error:
        raise ServiceError(f"Prefect's server does not say what runs ({type(error).__name__}).") from None
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
            if process.ppid() not in pids:  # a run's own processes are its own to end
                process.send_signal(signal.SIGTERM)
            processes.append(process)
    psutil.wait_procs(processes, timeout=GRACE)
