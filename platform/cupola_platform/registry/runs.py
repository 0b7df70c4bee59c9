"""The part of the registry about runs: how each started, what it made, how it ended."""

import os
import socket
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from cupola_platform.errors import NotFoundError
from cupola_platform.liveness import lives, start_of
from cupola_platform.registry.connection import Connection
from cupola_platform.registry.conversion import run_row
from cupola_platform.registry.database import patient
from cupola_platform.registry.leases import jobs_left_by
from cupola_platform.registry.rows import CONTINUED, RunRow, RunStatus
from cupola_platform.registry.tables import RunTable
from cupola_platform.security.urls import shown


class Runs(Connection):
    """The runs of recipes and of their stages."""

    def start_run(
        self, recipe: str, stage: str = "", parent: str | None = None, config: Mapping[str, Any] | None = None
    ) -> str:
        """Register a run of this process and return its id. An empty stage means the run of a whole recipe."""
        run = uuid.uuid4().hex[:12]
        self._add_run(
            id=run, parent_id=parent, recipe=recipe, stage=stage, status="running", config=dict(config or {}),
            metrics={}, started=datetime.now(UTC), pid=os.getpid(), process_start=start_of(os.getpid()),
            host=socket.gethostname(),
        )  # fmt: skip
        return run

    @patient
    def update_run(
        self, run: str, *, prefect_flow_run_id: str | None = None, mlflow_run_id: str | None = None,
        work_folder: Path | None = None, metrics: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        """Update a run; arguments that are None change nothing.

        Raises:
            NotFoundError: no such run.
        """
        with self._write() as session:
            row = _known_run(session, run)
            row.prefect_flow_run_id = prefect_flow_run_id or row.prefect_flow_run_id
            row.mlflow_run_id = mlflow_run_id or row.mlflow_run_id
            row.work_folder = str(work_folder) if work_folder else row.work_folder
            row.metrics = {**row.metrics, **(metrics or {})}

    @patient
    def finish_run(
        self, run: str, status: RunStatus, artifact: str | None = None, error: str | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        """Record how a run ended; `artifact` is the digest of what it made or reused.

        Raises:
            NotFoundError: no such run.
        """
        with self._write() as session:
            row = _known_run(session, run)
            row.status, row.artifact, row.error, row.ended = status, artifact, error and shown(error), datetime.now(UTC)
            row.metrics = {**row.metrics, **(metrics or {})}

    @patient
    def runs(self, limit: int = 100, *, parent: str | None = None, flow_run: str | None = None) -> list[RunRow]:
        """Newest first. With `parent`, that run's stages, oldest first; with `flow_run`, the runs of that Prefect flow
        run."""
        query = select(RunTable).limit(limit)
        if flow_run is not None:
            query = query.where(RunTable.prefect_flow_run_id == flow_run)
        if parent is None:
            query = query.order_by(RunTable.started.desc(), RunTable.id)
        else:
            query = query.where(RunTable.parent_id == parent).order_by(RunTable.started, RunTable.id)
        with self._read() as session:
            return [run_row(row) for row in session.scalars(query)]

    @patient
    def run(self, run: str) -> RunRow:
        """One run.

        Raises:
            NotFoundError: no such run.
        """
        with self._read() as session:
            return run_row(_known_run(session, run))

    @patient
    def sweep_lost_runs(self) -> list[RunRow]:
        """Mark this machine's runs whose process is gone as failed, or as detached if they left a job on a cluster, and
        return them. Does nothing if read-only."""
        query = select(RunTable).where(RunTable.status == "running", RunTable.host == socket.gethostname())
        with self._read() as session:
            gone = [row.id for row in session.scalars(query) if not lives(row.pid, row.process_start)]
        if not gone or self.read_only:
            return []
        with self._write() as session:
            rows = list(session.scalars(query.where(RunTable.id.in_(gone))))
            left = jobs_left_by(session, rows)
            for row in rows:
                row.status, row.ended = "detached" if row.id in left else "failed", datetime.now(UTC)
                row.error = f"lost: process {row.pid} on {row.host} ended without reporting a result. " + (
                    f"Its job goes on: {left[row.id]}. Follow it with cupola attach {row.id}."
                    if row.id in left
                    else "Start it again to resume."
                )
            return [run_row(row) for row in rows]

    @patient
    def take_over(self, work_folder: Path, run: str) -> None:
        """Say of detached runs of a stage, and of their recipes' runs, that `run` continues them."""
        with self._write() as session:
            query = select(RunTable).where(RunTable.status == "detached", RunTable.work_folder == str(work_folder))
            ours = _known_run(session, run)
            for row in session.scalars(query):
                whole = session.get(RunTable, row.parent_id) if row.parent_id else None
                for each, by in ((row, run), (whole, ours.parent_id or run)):
                    if each is not None and each.status == "detached":
                        each.status, each.error = "cancelled", f"{CONTINUED}{by}"

    @patient
    def _add_run(self, /, **columns: Any) -> None:
        with self._write() as session:
            session.merge(RunTable(**columns))  # it exists already if the server went away just after the commit


def _known_run(session: Session, run: str) -> RunTable:
    row = session.get(RunTable, run)
    if row is None:
        raise NotFoundError(f"No run {run!r}. `cupola runs` lists them.")
    return row
