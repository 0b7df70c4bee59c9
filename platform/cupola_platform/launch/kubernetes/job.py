"""A job on Kubernetes, as any process that knows its name sees it: how it is, why it waits or ended, what it prints."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cupola_platform.durable import write_text
from cupola_platform.errors import ConfigError, CupolaError, ServiceError
from cupola_platform.launch.handle import CANCELLED, STOP, Handle
from cupola_platform.launch.kubernetes import cluster, pods
from cupola_platform.launch.kubernetes.api import Api, MissingError
from cupola_platform.launch.kubernetes.logs import Logs
from cupola_platform.launch.kubernetes.manifests import JOB_LABEL, PLURALS
from cupola_platform.launch.local import GRACE_SECONDS
from cupola_platform.launch.polled import PolledJob

STATE = "kubernetes.json"
"""In a job's folder: where its log is, and how it ended."""
POLL_EVERY = 2.0
"""Seconds between two questions about one job."""
PATIENCE = 300.0
"""Seconds for which an API server that does not answer is asked again about a job that runs."""
HOPELESS_AFTER = 60.0
"""Seconds after which a container that cannot be made ends the job: a registry may fail for a moment."""
STUCK_AFTER = 120.0
"""Seconds after SIGKILL at which a pod that is still there is taken for one on a lost node."""


SHORT_AFTER = 300.0
"""Seconds for which a job that started again waits for room, if it could run in another layout on fewer nodes."""


class KubernetesJob(PolledJob):
    """A job that the cluster knows by the name of its TrainJob or JobSet."""

    def __init__(self, api: Api, known: Handle, folder: Path, again: "Callable[[], KubernetesJob]") -> None:
        """
        Args:
            folder: the job's, with what the launcher wrote there.
            again: starts the job once more, in the first of its layouts that the cluster has room for.
        """
        self._again = again
        self.api, self.known, self.folder = api, known, folder
        _, self.engine, self.id = known.id.split("/")
        self.log = Path(read_state(folder / STATE).get("log", folder / "log"))
        self.logs = Logs(api, folder, self.log)
        self._asked = float("-inf")
        self._silent_since: float | None = None
        self._status: int | None = None
        self._reason: str | None = None
        self._waits: str | None = None
        self._hopeless_since: float | None = None
        self._short_since: float | None = None
        self._attempt = 0

    @property
    def name(self) -> str:
        """As a person would look for it."""
        return f"{self.engine}/{self.id} in namespace {self.api.namespace} of cluster {self.known.cluster}"

    def waits(self) -> str | None:
        """Why the job's pods have not all started, when the cluster was last asked; None once they have."""
        return self._waits

    def reason(self) -> str | None:
        """Why Kubernetes ended the job, in words; None if it ended by itself or still runs."""
        return self._reason if self._status else None

    def poll(self) -> int | None:
        """Exit status of the job once it has ended, else None.

        Raises:
            ConfigError: the pods cannot start, and the job was removed; or the cluster refuses this machine's
                credentials, and the job goes on.
            ServiceError: the cluster has not answered for `PATIENCE` seconds; the job goes on.
        """
        if self._status is None and (time.monotonic() - self._asked >= POLL_EVERY or self.logs.ended.is_set()):
            self.logs.ended.clear()
            try:
                self._look()
                self._silent_since = None
            except ServiceError as error:
                self._silent_since = self._silent_since or time.monotonic()
                if time.monotonic() - self._silent_since > PATIENCE:
                    raise ServiceError(f"{error} The job goes on.") from None
                self._waits = str(error)
            self._asked = time.monotonic()
        return self._status

    def stop(self, grace_seconds: float = GRACE_SECONDS) -> int:
        """Ask the ranks to save and exit, then kill what is left after `grace_seconds`. Returns the exit status.

        Raises:
            ServiceError: the cluster does not answer, or a pod does not end because its node is lost.
        """
        if self._status is None and not self._has_ended(self.find()):
            (self.folder / STOP).touch()
            self._remove(grace_seconds)
            self._end(143, None)
        assert self._status is not None
        return self._status

    def find(self, patience: float = PATIENCE) -> dict[str, Any] | None:
        """The job's object in the cluster; None if there is none."""
        try:
            return self.api.request("GET", self._path, patience=patience)
        except MissingError:
            return None

    def pods(self, patience: float = PATIENCE) -> list[dict[str, Any]]:
        """The job's pods, by the number of their node."""
        query = {"labelSelector": f"{JOB_LABEL}={self.id}"}
        return sorted(self.api.request("GET", self._pods, query=query, patience=patience)["items"], key=pods.node_of)

    def lives(self) -> bool:
        """Whether the job goes on. One that is being deleted is waited for, and an end that nobody saw is kept."""
        job = self.find()
        if job is None or "deletionTimestamp" in job["metadata"]:
            self.settle(STUCK_AFTER)
        elif not is_finished(job):
            return True
        self._look()
        return False

    def settle(self, seconds: float) -> bool:
        """Wait until nothing of the job is left in the cluster, and copy its output. Returns whether that happened."""
        until = time.monotonic() + seconds
        while (left := self.pods()) or self.find() is not None:
            self.logs.follow(left)
            if time.monotonic() > until:
                return False
            time.sleep(0.3)
        return True

    @property
    def _path(self) -> str:
        version, plural = PLURALS[self.engine]
        return f"/apis/{version}/namespaces/{self.api.namespace}/{plural}/{self.id}"

    @property
    def _pods(self) -> str:
        return f"/api/v1/namespaces/{self.api.namespace}/pods"

    def _look(self) -> None:
        """Ask once how the job is; copy its output; end what has ended or can never start."""
        job, running = self.find(patience=0), self.pods(patience=0)
        self.logs.follow(running)
        self._note_restart(running)
        self._reason = pods.ending(running) or self._reason
        if job is None:
            if not running:
                self._vanished()
            return
        if self._has_ended(job):
            return
        self._waits = cluster.waits(self.api, self.id, running)
        self._give_up_if_hopeless(running)
        self._make_do()

    def _has_ended(self, job: Mapping[str, Any] | None) -> bool:
        """Whether the engine says that the job has ended, which is then kept."""
        if job is not None and is_finished(job):
            failed = pods.condition(job, "Failed")
            if failed.get("status") != "True":
                self._end(1 if (self.folder / "error.json").exists() else 0, None)
            else:
                self._end(1, "it reached its deadline" if failed.get("reason") == "DeadlineExceeded" else self._reason)
        return self._status is not None

    def _note_restart(self, running: Sequence[Mapping[str, Any]]) -> None:
        attempt = max(map(pods.attempt_of, running), default=0)
        if attempt > self._attempt:
            self._attempt = attempt
            self._say(f"start {attempt + 1}: {self._reason or 'a rank failed'}")
            self._reason = None

    def _vanished(self) -> None:
        ended = read_state(self.folder / STATE)
        if "status" in ended:  # another process saw the end
            self._end(ended["status"], ended["reason"])
        elif (self.folder / "result.json").exists():
            self._end(0, None)
        else:
            self._end(1, CANCELLED)

    def _give_up_if_hopeless(self, running: Sequence[Mapping[str, Any]]) -> None:
        trouble = pods.hopeless(running)
        if trouble is None:
            self._hopeless_since = None
            return
        self._hopeless_since = self._hopeless_since or time.monotonic()
        if time.monotonic() - self._hopeless_since >= HOPELESS_AFTER:
            what, words = trouble
            self._remove(0)
            self._end(1, what)
            raise ConfigError(
                f"Cluster {self.known.cluster}: {what}: {words}. The job was removed. Correct "
                f"clusters.{self.known.cluster} in cupola.toml."
            )

    def _make_do(self) -> None:
        """Start a job that lost nodes and finds no others again in a layout that fits, if it has any."""
        if self._waits is None or self._attempt == 0 or len(read_state(self.folder / STATE).get("jobs", ())) < 2:
            self._short_since = None
            return
        self._short_since = self._short_since or time.monotonic()
        if time.monotonic() - self._short_since >= SHORT_AFTER:
            self._say(f"too few nodes are left ({self._waits})")
            self._remove(0)
            self.logs.finish()
            other = self._again()
            self.known, self.engine, self.id, self.logs = other.known, other.engine, other.id, other.logs
            self._attempt, self._short_since = 0, None

    def _say(self, line: str) -> None:
        with self.log.open("a") as log:
            log.write(f"cupola: {line}\n")

    def _remove(self, grace_seconds: float) -> None:
        """Delete the job, which sends SIGTERM to its pods, and SIGKILL after `grace_seconds`."""
        self._delete()
        if self.settle(grace_seconds):
            return
        for pod in self.pods():
            path = f"{self._pods}/{pod['metadata']['name']}"
            with suppress(MissingError):
                self.api.request("DELETE", path, body={"gracePeriodSeconds": 1}, patience=PATIENCE)
        if not self.settle(STUCK_AFTER):
            where = {pod["spec"].get("nodeName", "no machine") for pod in self.pods()}
            raise ServiceError(
                f"{self.name} is deleted, but pods on {', '.join(sorted(where))} do not end. If that machine is lost: "
                "kubectl delete node NAME."
            )

    def _delete(self) -> None:
        with suppress(MissingError):
            self.api.request("DELETE", self._path, body={"propagationPolicy": "Foreground"}, patience=PATIENCE)

    def _end(self, status: int, reason: str | None) -> None:
        """Keep the job's end, for other processes too, and remove what is left in the cluster."""
        self.logs.finish()
        self._status, self._reason, self._waits = status, reason, None
        with suppress(FileNotFoundError):  # the folder, after a result was published
            write_text(self.folder / STATE, json.dumps({"log": str(self.log), "status": status, "reason": reason}))
        with suppress(CupolaError):
            self._delete()


def is_finished(job: Mapping[str, Any]) -> bool:
    """Whether a TrainJob or a JobSet has ended by itself."""
    return any(pods.condition(job, kind).get("status") == "True" for kind in ("Complete", "Completed", "Failed"))


def read_state(file: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads(file.read_text())
        return state
    except (FileNotFoundError, ValueError):
        return {}
