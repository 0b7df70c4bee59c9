"""Corrects Prefect's states: a flow run whose process died does not stay RUNNING.

Each of Cupola's flow runs has a tag that names its process: host, process id and start time since boot. If the process
is gone, the flow run gets the state that the registry has for it, or Crashed; a submitted run is then rescheduled once.
A run whose job goes on on a cluster is not dead: it is Detached, and a submitted one is rescheduled to follow the job.
What the cluster does not say changes nothing. Processes on other machines are checked there. Prefect is called by
HTTP, never imported.
"""

import fcntl
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

from cupola_platform.errors import ServiceError
from cupola_platform.launch.interface import RunningJob
from cupola_platform.launch.living import living_job
from cupola_platform.liveness import lives, start_of
from cupola_platform.registry import RunRow
from cupola_platform.workspace import Workspace

PROCESS_TAG = "cupola.process:"
OWN_SERVER_TAG = "cupola.own-server"
"""Tag of runs whose command started its own Prefect server; `cupola down` leaves them alone."""
RESTARTED_TAG = "cupola.restarted"
"""Tag of a submitted run that was restarted after a crash; it is not restarted again."""
ASK_EVERY = 60.0
"""Seconds between questions to a cluster about the job of a detached run."""
PATIENCE = 60.0
"""Seconds that a submitted run may be without its process, while the worker starts Python."""
CANCELLED = "cancelled by `cupola down`. Finished work is kept. Run the same command to resume."
_PAGE = 200
_UNFINISHED = ["PENDING", "RUNNING", "CANCELLING"]
_STATES = {"completed": "COMPLETED", "reused": "COMPLETED", "cancelled": "CANCELLED", "failed": "FAILED"}

FlowRun = Mapping[str, Any]
"""A flow run from Prefect's API."""


def process_tag() -> str:
    """The tag of flow runs in this process."""
    return f"{PROCESS_TAG}{socket.gethostname()}/{os.getpid()}/{start_of(os.getpid())}"


def worker_name(pid: int) -> str:
    """Name of a worker, by which its runs are recognized as this machine's."""
    return f"{socket.gethostname()}-{pid}"  # Prefect allows no slashes


def claimed(tags: list[str]) -> list[str]:
    """A flow run's tags after this process has taken it over."""
    return [*_unclaimed(tags), process_tag()]


@dataclass
class Sweeper:
    """Finds flow runs without a process. Remembers between sweeps when it first saw runs that are starting."""

    workspace: Workspace
    client: httpx.Client
    """Client of Prefect's API."""
    seen: dict[str, tuple[str, float]] = field(default_factory=dict)

    def sweep(self) -> list[str]:
        """Sweep once. Returns a line for each change.

        Raises:
            httpx.HTTPError: the server does not respond, or refuses.
            RegistryError: the registry does not respond.
        """
        with self._locked():
            self.workspace.registry.sweep_lost_runs()
            lines = self._end_detached()
            unfinished = self._runs(_UNFINISHED)
            ended = lines + [line for run in unfinished if self._is_dead(run) and (line := self._end(run))]
            crashed = [run for run in self._runs(["CRASHED"]) if self._may_restart(run)]
            return ended + [self._restart(run) for run in crashed]

    def living(self) -> list[FlowRun]:
        """The unfinished flow runs of this workspace, recipes and stages, that depend on this server and have a process
        or a worker on this machine."""
        unfinished = [run for run in self._runs(_UNFINISHED) if OWN_SERVER_TAG not in run["tags"]]
        whole = [
            run for run in unfinished if self._is_ours(run) and (processes_of(run) or self._is_submitted_here(run))
        ]
        claims = {_claim(run) for run in whole} - {None}
        return whole + [run for run in unfinished if run not in whole and _claim(run) in claims]

    def cancel(self, runs: list[FlowRun]) -> None:
        """Mark runs whose processes were stopped on purpose as cancelled, in Prefect and in the registry."""
        with self._locked():
            self.workspace.registry.sweep_lost_runs()
            for run in runs:
                known = self._known(run)
                if known is not None and known.lost:
                    self.workspace.registry.finish_run(known.id, "cancelled", error=CANCELLED)
                if self._request("GET", f"/flow_runs/{run['id']}")["state"]["type"] in {*_UNFINISHED, "CRASHED"}:
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
        """Whether it is a submitted run of this workspace whose worker is on this machine, or not known yet."""
        worker = str((run.get("labels") or {}).get("prefect.worker.name", worker_name(0)))
        return bool(run["deployment_id"]) and self._is_ours(run) and worker.rpartition("-")[0] == socket.gethostname()

    def _is_ours(self, run: FlowRun) -> bool:
        return (run.get("parameters") or {}).get("workspace") == str(self.workspace.root)

    def _unchanged(self, run: FlowRun) -> float:
        """Seconds since the run was first seen in its current state."""
        state, since = self.seen.get(run["id"], ("", 0.0))
        if state != run["state"]["id"]:
            state, since = self.seen[run["id"]] = run["state"]["id"], time.monotonic()
        return time.monotonic() - since

    def _may_restart(self, run: FlowRun) -> bool:
        return self._is_submitted_here(run) and RESTARTED_TAG not in run["tags"] and not processes_of(run)

    def _end_detached(self) -> list[str]:
        """Mark detached runs as failed once their job has ended. Asks the cluster of each about once a minute."""
        lines = []
        for lease in self.workspace.registry.leases.all():
            folder = self.workspace.root / "work" / lease.fingerprint
            if not lease.job or lease.is_held or not self._is_due(lease.fingerprint) or not folder.is_dir():
                continue
            with suppress(ServiceError):  # the cluster does not say
                if living_job(self.workspace.settings, folder) is None:
                    lines += self._end_runs_in(folder, f"job {lease.job} of cluster {lease.cluster}")
                    self.workspace.registry.leases.release(lease.fingerprint, lease.holder, job_goes_on=False)
        return lines

    def _end_runs_in(self, folder: Path, job: str) -> list[str]:
        """Mark the detached runs of a stage, and of its recipe, whose job has ended. Returns a line for each."""
        registry, lines = self.workspace.registry, []
        for row in registry.runs(_PAGE):
            if row.status == "detached" and row.work_folder == folder:
                for run in filter(None, (row.id, row.parent_id)):
                    error = f"lost: nobody followed it, and {job} has ended. Start it again to resume."
                    registry.finish_run(run, "failed", error=error)
                lines.append(f"{row.recipe} {row.stage}: {job} has ended. Run {row.id} is set to failed.")
        return lines

    def _is_due(self, fingerprint: str) -> bool:
        _, asked = self.seen.get(fingerprint, ("", float("-inf")))
        if time.monotonic() - asked < ASK_EVERY:
            return False
        self.seen[fingerprint] = "", time.monotonic()
        return True

    def _job_of(self, known: RunRow) -> RunningJob | None:
        """The job of a detached run, or of one of its stages. Raises ServiceError if its cluster does not say."""
        rows = [known, *self.workspace.registry.runs(_PAGE, parent=known.id)]
        folders = [row.work_folder for row in rows if row.status == "detached" and row.work_folder]
        jobs = (living_job(self.workspace.settings, folder) for folder in folders)
        return next((job for job in jobs if job), None)

    def _end(self, run: FlowRun) -> str | None:
        """Correct the state of a dead run. Returns what was changed, or None if its cluster does not say enough."""
        known = self._known(run)
        try:
            job = self._job_of(known) if known is not None and known.status == "detached" else None
        except ServiceError:
            return None
        if known and job and (not run["deployment_id"] or RESTARTED_TAG in run["tags"]):
            message = f"Its process is gone; {job.name} goes on. Follow it with cupola attach {known.id}."
            self._set(run, "CANCELLED", "Detached", message)
            return f"{run['name']}: {message} Set to Detached."
        ended = known is not None and known.status not in ("running", "detached") and not known.lost
        state = _STATES[known.status] if known is not None and ended else "CRASHED"
        if state == "CRASHED" and run["state"]["type"] == "CANCELLING":
            state = "CANCELLED"
        message = (
            f"Its process ended; the registry has it as {known.label}." if known and ended else "Its process is gone."
        )
        self._set(run, state, state.capitalize(), message)
        return f"{run['name']}: {message} Set to {state.capitalize()}."

    def _restart(self, run: FlowRun) -> str:
        tags = [*_unclaimed(run["tags"]), RESTARTED_TAG]
        self._request("PATCH", f"/flow_runs/{run['id']}", {"tags": tags})  # tag first: better no restart than two
        message = "Restarted once after a crash."
        self._set(run, "SCHEDULED", "AwaitingRetry", message, scheduled_time=datetime.now(UTC).isoformat())
        return f"{run['name']}: {message}"

    def _known(self, run: FlowRun) -> RunRow | None:
        rows = self.workspace.registry.runs(1, flow_run=run["id"])
        return rows[0] if rows else None

    def _runs(self, states: list[str]) -> list[FlowRun]:
        runs: list[FlowRun] = []
        while len(runs) % _PAGE == 0:
            body = {"flow_runs": {"state": {"type": {"any_": states}}}, "limit": _PAGE, "offset": len(runs)}
            page = self._request("POST", "/flow_runs/filter", body)
            runs += page
            if not page:
                break
        return runs

    def _set(self, run: FlowRun, state: str, name: str, message: str, **details: Any) -> None:
        body = {"type": state, "name": name, "message": message, "state_details": details}
        self._request("POST", f"/flow_runs/{run['id']}/set_state", {"state": body, "force": True})

    def _request(self, method: str, path: str, body: Any = None) -> Any:
        response = self.client.request(method, path, json=body)
        response.raise_for_status()
        return response.json() if response.content else None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the workspace, since two sweeps at a time would restart a run twice."""
        with (self.workspace.folder("pids") / "sweep.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _unclaimed(tags: list[str]) -> list[str]:
    return [tag for tag in tags if not tag.startswith(PROCESS_TAG)]


def _claim(run: FlowRun) -> tuple[str, int, str] | None:
    """Host, process id and start time in a run's tag; None without a tag."""
    for tag in run["tags"]:
        if tag.startswith(PROCESS_TAG):
            host, pid, start = tag.removeprefix(PROCESS_TAG).split("/")
            return host, int(pid), start
    return None


def processes_of(run: FlowRun) -> list[int]:
    """Ids of a run's living processes on this machine: the one in its tag, else those that a worker started for it and
    their surviving children."""
    claim = _claim(run)
    if claim and claim[0] == socket.gethostname() and lives(claim[1], claim[2]):
        return [claim[1]]
    return [process.pid for process in psutil.process_iter() if run["deployment_id"] and _started_for(process, run)]


def _started_for(process: psutil.Process, run: FlowRun) -> bool:
    try:
        return process.environ().get("PREFECT__FLOW_RUN_ID") == run["id"] and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
