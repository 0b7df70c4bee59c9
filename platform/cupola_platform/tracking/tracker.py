"""Logging to MLflow in the background.

A run's data is written to the spool first (see `spool`) and sent from there by one thread, so a tracking server that is
slow or down never delays a stage, and nothing is lost or sent twice when a process dies.
"""

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from cupola_platform.errors import NotFoundError, ServiceError
from cupola_platform.liveness import lives
from cupola_platform.registry import RunStatus
from cupola_platform.security.urls import shown
from cupola_platform.tracking.metrics_tail import Cursor, read_points
from cupola_platform.tracking.spool import Spool
from cupola_platform.workspace import Workspace

BATCH = 1000
"""Metrics per request, which is MLflow's limit."""

RUN_TAG = "cupola.run"
"""Tag that holds a run's id in the registry, to find its MLflow run again."""

_PARAMETERS_AT_ONCE = 100
_STATUS = {"completed": "FINISHED", "reused": "FINISHED", "failed": "FAILED", "cancelled": "KILLED",
           "detached": "KILLED"}  # fmt: skip
_AWAY_AFTER = 2
"""Consecutive failures after which the server counts as away."""


@dataclass(frozen=True)
class Flushed:
    """The result of sending the spool."""

    sent: int
    """Ended runs that are now sent completely."""
    left: int
    """Runs with data still in the spool or to come."""
    reason: str | None
    """Why the last of them could not be sent; None if nothing failed."""

    def said(self, spool: Spool) -> str:
        """One line for people on what is still unsent."""
        runs, lines = spool.waiting()
        why = f" ({self.reason})" if self.reason else ""
        return (
            f"MLflow did not get everything{why}: {runs} runs with {lines:,} lines of metrics wait in {spool.folder}. "
            "The same command, `cupola up` or `cupola tracking flush` sends them."
        )


class Sender:
    """Sends a spool to one MLflow server, each point once."""

    def __init__(
        self, uri: str, spool: Spool, *, experiment: str = "cupola", on_open: Callable[[str, str], None] | None = None
    ) -> None:
        """
        Args:
            uri: MLflow's tracking URI.
            on_open: called with a run's id and its MLflow run id once the server has created it.
        """
        self.uri = uri
        self.spool = spool
        self._experiment = experiment
        self._on_open = on_open
        self._connected: Any = None

    def flush(self, runs: Sequence[str] | None = None) -> Flushed:
        """Send what is in the spool for `runs`, or for all. Never raises: failures stay in the spool for the next
        time."""
        sent, left, reason, failed = 0, 0, None, 0
        waiting = self.spool.runs() if runs is None else runs
        for number, run in enumerate(waiting):
            try:
                done = self.send(run)
            except Exception as error:  # noqa: BLE001  no error of the server may end a stage
                line = shown(str(error) or repr(error)).splitlines()[0]
                left, reason, self._connected, failed = left + 1, line[:200], None, failed + 1
                if failed == _AWAY_AFTER:
                    return Flushed(sent, left + len(waiting) - number - 1, reason)
            else:
                sent, left, failed = sent + done, left + (not done), 0
        return Flushed(sent, left, reason)

    def send(self, run: str) -> bool:
        """Send a run's data. Once it has ended and is sent completely, remove it from the spool and return True."""
        with self.spool.locked(run) as mine:
            if not mine:
                return not self.spool.holds(run)
            identity = self._identity(run)
            end = self.spool.read(run, "end")  # before the metrics: if it exists, they are complete
            self._send_metrics(run, identity)
            if end is None:
                return False
            self._log_metrics(identity, [(key, value, end["time"], 0) for key, value in end["metrics"].items()])
            for key, value in end["tags"].items():
                self._client.set_tag(identity, key, value)
            self._client.set_terminated(identity, _STATUS[end["status"]], end["time"])
            self.spool.remove(run)
            return True

    @property
    def _client(self) -> Any:
        if self._connected is None:
            # MLflow's own retries would block the thread for minutes, and its banners would break the progress display.
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
            os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
            os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
            from mlflow import MlflowClient

            logging.getLogger("alembic").setLevel(logging.WARNING)
            logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it logs every retry
            self._connected = MlflowClient(tracking_uri=self.uri)
        return self._connected

    def _identity(self, run: str) -> str:
        """The MLflow id of a run locked by this thread: stored, found by its tag, or created."""
        state = self.spool.read(run, "state")
        if state is not None and state["uri"] == shown(self.uri):
            return str(state["id"])
        opened = self.spool.read(run, "open")
        if opened is None:
            raise ServiceError(f"{self.spool.folder / run} has no open.json, so its run is unknown. Remove the folder.")
        experiment = self._experiment_id()
        identity = self._find(experiment, run) or self._create(experiment, run, opened)
        self._log_parameters(identity, opened["params"])
        self.spool.write(run, "state", {"uri": shown(self.uri), "id": identity, "cursors": {}})
        if self._on_open is not None:
            self._on_open(run, identity)
        return identity

    def _find(self, experiment: str, run: str) -> str | None:
        runs = self._client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{run}'", max_results=1)
        return str(runs[0].info.run_id) if runs else None

    def _create(self, experiment: str, run: str, opened: Mapping[str, Any]) -> str:
        tags = {**opened["tags"], RUN_TAG: run}
        parent = self._parent(experiment, opened["parent"]) if opened["parent"] else None
        if parent is not None:
            tags["mlflow.parentRunId"] = parent
        created = self._client.create_run(experiment, start_time=opened["time"], tags=tags, run_name=opened["name"])
        return str(created.info.run_id)

    def _parent(self, experiment: str, parent: str) -> str | None:
        with self.spool.locked(parent) as mine:
            if mine:
                return self._identity(parent)
        identity = self._find(experiment, parent)
        if identity is None and self.spool.holds(parent):
            raise ServiceError(f"Run {parent} is being sent by another process. Its stages follow later.")
        return identity

    def _experiment_id(self) -> str:
        experiment = self._client.get_experiment_by_name(self._experiment)
        if experiment is None:
            with suppress(Exception):  # another process may create it first; other errors show below
                self._client.create_experiment(self._experiment)
            experiment = self._client.get_experiment_by_name(self._experiment)
        return str(experiment.experiment_id)

    def _send_metrics(self, run: str, identity: str) -> None:
        state = self.spool.read(run, "state")
        assert state is not None
        for number, (followed, prefix) in enumerate(self.spool.followed(run).items()):
            kept = self.spool.kept(run, number)
            path = kept if kept.is_file() else Path(followed)
            more = path.is_file()
            while more:
                cursor = Cursor(**state["cursors"].get(followed, {}))
                points, behind = read_points(path, cursor, BATCH)
                metrics = [(prefix + point.key, point.value, point.timestamp, point.step) for point in points]
                self._log_metrics(identity, metrics)
                state["cursors"][followed] = asdict(behind)
                more = behind != cursor
                if more:
                    self.spool.write(run, "state", state)

    def _log_metrics(self, identity: str, points: Sequence[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        if points:
            self._client.log_batch(identity, metrics=[Metric(*point) for point in points])

    def _log_parameters(self, identity: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        every = [Param(key, value) for key, value in params.items()]
        for start in range(0, len(every), _PARAMETERS_AT_ONCE):
            self._client.log_batch(identity, params=every[start : start + _PARAMETERS_AT_ONCE])


class Tracker:
    """Logs stages to MLflow. Methods return at once and a thread sends. As a context manager it closes itself."""

    def __init__(
        self,
        sender: Sender,
        interval: float = 1.0,
        leftovers: Callable[[], object] = lambda: None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """
        Args:
            interval: seconds between checks for data to send.
            leftovers: called once the server has responded, to send what earlier runs left.
            say: shows a message when the server goes away, when it is back, and at the end if data is unsent.
        """
        self._sender = sender
        self._leftovers = leftovers
        self._say = say
        self._failed = 0
        self._spool = sender.spool
        self._interval = interval
        self._runs: list[str] = []
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._last = Flushed(0, 0, None)

    @staticmethod
    def open(ws: Workspace, say: Callable[[str], None] = lambda _: None) -> "Tracker":
        """The tracker of a workspace. It records each run's MLflow id in the registry, and sends what earlier runs
        left."""
        return Tracker(_sender(ws), leftovers=lambda: flush_spool(ws), say=say)

    def open_run(
        self, run: str, name: str, *, parent: str | None = None, params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Start a run.

        Args:
            run: its id in the registry.
            parent: the id of the run it is part of.
            params: may be nested; MLflow gets dotted names.
        """
        self._spool.open_run(run, name, parent, params or {}, tags or {})
        self._runs.append(run)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
            self._thread.start()

    def follow(self, run: str, metrics: Path, prefix: str = "") -> None:
        """Send the present and future lines of a job's `metrics.jsonl`. A run may have several files; if their steps
        overlap, prefixes keep their metrics apart."""
        self._spool.follow(run, metrics, prefix)

    def end_run(
        self,
        run: str,
        status: RunStatus,
        *,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """End a run, with its last metrics and the tags that name its artifact. Its jobs' folders may then be
        removed."""
        self._spool.end_run(run, status, metrics or {}, tags or {})

    def close(self, timeout: float = 20.0) -> Flushed:
        """Send what is left, for up to `timeout` seconds; the rest stays in the spool."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                return Flushed(
                    self._last.sent, len(self._runs), f"{shown(self._sender.uri)} took longer than {timeout:.0f} s"
                )
        return self._last

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        flushed = self.close()
        if flushed.left:
            self._say(flushed.said(self._spool))

    def _tell(self, reason: str | None) -> None:
        """Say once that the server went away, and once that it is back."""
        before, self._failed = self._failed, self._failed + 1 if reason else 0
        if self._failed == _AWAY_AFTER:
            self._say(f"MLflow does not respond ({reason}). The run continues; its metrics are kept and sent later.")
        elif before >= _AWAY_AFTER and not reason:
            self._say("MLflow responds again.")

    def _work(self) -> None:
        sent, closing, answered = 0, False, False
        while not closing:
            closing = self._closing.is_set()
            flushed = self._sender.flush(self._runs)
            sent += flushed.sent
            self._last = Flushed(sent, flushed.left, flushed.reason)
            self._tell(flushed.reason)
            for run in [run for run in self._runs if not self._spool.holds(run)]:
                self._runs.remove(run)
            if not answered and flushed.reason is None:
                self._leftovers()
                answered = True
            if not closing:
                self._closing.wait(self._interval * (5 if flushed.reason else 1))


def flush_spool(ws: Workspace) -> Flushed:
    """Send what ended runs left in the spool because the tracking server was away or their process died. Data of
    running processes is left to them."""
    sender = _sender(ws)
    waiting = sender.spool.runs()
    if not waiting:
        return Flushed(0, 0, None)
    ws.registry.sweep_lost_runs()
    for run in waiting:
        if sender.spool.read(run, "end") is None:
            with suppress(NotFoundError):
                row = ws.registry.run(run)
                if row.ended is not None and not lives(row.pid, row.process_start):
                    sender.spool.end_run(run, row.status, row.metrics, {})
    return sender.flush([run for run in waiting if sender.spool.read(run, "end") is not None])


def _sender(ws: Workspace) -> Sender:
    def opened(run: str, identity: str) -> None:
        ws.registry.update_run(run, mlflow_run_id=identity)

    if ws.settings.mlflow_auth_string:  # MLflow's client takes a credential in no other way
        user, _, password = ws.settings.mlflow_auth_string.get_secret_value().partition(":")
        os.environ |= {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password}
    return Sender(ws.settings.tracking_uri, Spool(ws.folder("spool")), on_open=opened)
