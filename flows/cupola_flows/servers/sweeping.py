"""Prefect's states made true: a flow run whose process has ended without a word does not stay RUNNING.

Each flow run of ours bears a tag that names the process which carries it out: host, number and start since boot. One
whose process is gone becomes what the registry says of it, or Crashed; a submitted one is then scheduled again, once. A
process on another machine is judged there. Light: Prefect is called by HTTP, never imported.
"""

import fcntl
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
import psutil

from cupola_platform.liveness import lives, start_of
from cupola_platform.registry import RunRow
from cupola_platform.workspace import Workspace

PROCESS_TAG = "cupola.process:"
OWN_SERVER_TAG = "cupola.own-server"
"""On the runs of a command that started a Prefect server for itself: `cupola down` leaves it alone."""
RESTARTED_TAG = "cupola.restarted"
"""On a submitted run that was started again after a crash: it is not a second time."""
PATIENCE = 60.0
"""Seconds for which a submitted run may be without a process that is its own: a worker has it in hand,
and Python starts."""
CANCELLED = "cancelled by `cupola down`. Finished work is kept. Run the same command to resume."
_PAGE = 200
_UNFINISHED = ["PENDING", "RUNNING", "CANCELLING"]
_STATES = {"completed": "COMPLETED", "reused": "COMPLETED", "cancelled": "CANCELLED", "failed": "FAILED"}

FlowRun = Mapping[str, Any]
"""A flow run as Prefect's API gives it."""


def process_tag() -> str:
    """The tag of the flow runs that this process carries out."""
    return f"{PROCESS_TAG}{socket.gethostname()}/{os.getpid()}/{start_of(os.getpid())}"


def worker_name(pid: int) -> str:
    """The name by which a worker's runs are known to be this machine's."""
    return f"{socket.gethostname()}-{pid}"  # Prefect allows no slash


def claimed(tags: list[str]) -> list[str]:
    """A flow run's tags once this process carries it out."""
    return [*_unclaimed(tags), process_tag()]


@dataclass
class Sweeper:
    """Looks for flow runs without a process; keeps between its looks what it has seen of runs that are being
    started."""

    workspace: Workspace
    client: httpx.Client
    """Of Prefect's API."""
    seen: dict[str, tuple[str, float]] = field(default_factory=dict)

    def sweep(self) -> list[str]:
        """Look once, and say what was done, a line each.

        Raises:
            httpx.HTTPError: the server does not answer, or refuses.
            RegistryError: the registry does not.
        """
        with self._alone():
            self.workspace.registry.sweep_lost_runs()
            unfinished = self._runs(_UNFINISHED)
            ended = [self._end(run) for run in unfinished if self._is_dead(run)]
            crashed = [run for run in self._runs(["CRASHED"]) if self._may_start_again(run)]
            return ended + [self._start_again(run) for run in crashed]

    def living(self) -> list[FlowRun]:
        """The unfinished flow runs of this workspace that this server's end would end: those of its recipes, and of
        their stages, that a process on this machine carries out or a worker here has in hand."""
        unfinished = [run for run in self._runs(_UNFINISHED) if OWN_SERVER_TAG not in run["tags"]]
        whole = [
            run for run in unfinished if self._is_ours(run) and (processes_of(run) or self._is_submitted_here(run))
        ]
        claims = {_claim(run) for run in whole} - {None}
        return whole + [run for run in unfinished if run not in whole and _claim(run) in claims]

    def cancel(self, runs: list[FlowRun]) -> None:
        """Say of runs whose processes were ended on purpose that they were cancelled,
        to Prefect and to the registry."""
        with self._alone():
            self.workspace.registry.sweep_lost_runs()
            for run in runs:
                known = self._known(run)
                if known is not None and known.lost:
                    self.workspace.registry.finish_run(known.id, "cancelled", error=CANCELLED)
                if self._asked("GET", f"/flow_runs/{run['id']}")["state"]["type"] in {*_UNFINISHED, "CRASHED"}:
                    self._set(run, "CANCELLED", "Cancelled", CANCELLED)

    def _is_dead(self, run: FlowRun) -> bool:
        claim = _claim(run)
        if claim and claim[0] != socket.gethostname():
            return False
        if processes_of(run):
            return False
        if claim and (run["state"]["type"] != "PENDING" or not run["deployment_id"]):
            return True
        return self._is_submitted_here(run) and self._unchanged(run) > PATIENCE

    def _is_submitted_here(self, run: FlowRun) -> bool:
        """Whether a worker on this machine took it from this workspace's submitted runs; until it says so,
        any may have."""
        worker = str((run.get("labels") or {}).get("prefect.worker.name", worker_name(0)))
        return bool(run["deployment_id"]) and self._is_ours(run) and worker.rpartition("-")[0] == socket.gethostname()

    def _is_ours(self, run: FlowRun) -> bool:
        return (run.get("parameters") or {}).get("workspace") == str(self.workspace.root)

    def _unchanged(self, run: FlowRun) -> float:
        """Seconds since this first saw the run in its present state."""
        state, since = self.seen.get(run["id"], ("", 0.0))
        if state != run["state"]["id"]:
            state, since = self.seen[run["id"]] = run["state"]["id"], time.monotonic()
        return time.monotonic() - since

    def _may_start_again(self, run: FlowRun) -> bool:
        return self._is_submitted_here(run) and RESTARTED_TAG not in run["tags"] and not processes_of(run)

    def _end(self, run: FlowRun) -> str:
        known = self._known(run)
        ended = known is not None and known.status != "running" and not known.lost
        state = _STATES[known.status] if known is not None and ended else "CRASHED"
        if state == "CRASHED" and run["state"]["type"] == "CANCELLING":
            state = "CANCELLED"
        message = (
            f"Its process ended as the registry has it: {known.label}." if known and ended else "Its process is gone."
        )
        self._set(run, state, state.capitalize(), message)
        return f"{run['name']}: {message} It is {state.capitalize()} now."

    def _start_again(self, run: FlowRun) -> str:
        tags = [*_unclaimed(run["tags"]), RESTARTED_TAG]
        self._asked("PATCH", f"/flow_runs/{run['id']}", {"tags": tags})  # first: rather not again than twice
        message = "Started again, once, after it crashed."
        self._set(run, "SCHEDULED", "AwaitingRetry", message, scheduled_time=datetime.now(UTC).isoformat())
        return f"{run['name']}: {message}"

    def _known(self, run: FlowRun) -> RunRow | None:
        rows = self.workspace.registry.runs(1, flow_run=run["id"])
        return rows[0] if rows else None

    def _runs(self, states: list[str]) -> list[FlowRun]:
        runs: list[FlowRun] = []
        while len(runs) % _PAGE == 0:
            body = {"flow_runs": {"state": {"type": {"any_": states}}}, "limit": _PAGE, "offset": len(runs)}
            page = self._asked("POST", "/flow_runs/filter", body)
            runs += page
            if not page:
                break
        return runs

    def _set(self, run: FlowRun, state: str, name: str, message: str, **details: Any) -> None:
        body = {"type": state, "name": name, "message": message, "state_details": details}
        self._asked("POST", f"/flow_runs/{run['id']}/set_state", {"state": body, "force": True})

    def _asked(self, method: str, path: str, body: Any = None) -> Any:
        response = self.client.request(method, path, json=body)
        response.raise_for_status()
        return response.json() if response.content else None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One look at a time in a workspace: two would start a run twice."""
        with (self.workspace.folder("pids") / "sweep.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _unclaimed(tags: list[str]) -> list[str]:
    return [tag for tag in tags if not tag.startswith(PROCESS_TAG)]


def _claim(run: FlowRun) -> tuple[str, int, str] | None:
    """Host, number and start of the process that carries a run out, as its tag has them."""
    for tag in run["tags"]:
        if tag.startswith(PROCESS_TAG):
            host, pid, start = tag.removeprefix(PROCESS_TAG).split("/")
            return host, int(pid), start
    return None


def processes_of(run: FlowRun) -> list[int]:
    """Numbers of the living processes on this machine that carry a run out: the one that its tag names, else those that
    a worker started for it, and what they left when they were killed."""
    claim = _claim(run)
    if claim and claim[0] == socket.gethostname() and lives(claim[1], claim[2]):
        return [claim[1]]
    return [process.pid for process in psutil.process_iter() if run["deployment_id"] and _started_for(process, run)]


def _started_for(process: psutil.Process, run: FlowRun) -> bool:
    try:
        return process.environ().get("PREFECT__FLOW_RUN_ID") == run["id"] and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
