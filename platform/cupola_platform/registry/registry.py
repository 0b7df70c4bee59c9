"""All reads and writes of the registry."""

import os
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from cupola_platform.aliases import check_alias
from cupola_platform.artifacts import Manifest
from cupola_platform.errors import NotFoundError, RegistryError
from cupola_platform.liveness import lives, start_of
from cupola_platform.registry.conversion import alias_row, annotation, artifact_row, artifact_table, move_row, run_row
from cupola_platform.registry.database import PATIENCE, open_engine, patient, patiently, refusals, writing
from cupola_platform.registry.leases import Leases, jobs_left_by
from cupola_platform.registry.read_only import read_only_file
from cupola_platform.registry.retention import Retention
from cupola_platform.registry.rows import (
    CONTINUED,
    AliasMove,
    AliasRow,
    Annotation,
    ArtifactRow,
    Choice,
    RunRow,
    RunStatus,
)
from cupola_platform.registry.tables import (
    AliasMoveTable,
    AliasTable,
    AnnotationTable,
    ArtifactTable,
    EdgeTable,
    FingerprintTable,
    RemovalTable,
    RunTable,
)
from cupola_platform.security.urls import shown


class Registry:
    """The registry at a SQLAlchemy URL. Its schema is migrated on open.

    Every method raises RegistryError if the database cannot be reached or refuses.
    """

    def __init__(self, url: str, patience: float = PATIENCE) -> None:
        """`patience`: seconds to keep retrying when the server does not respond."""
        self.url = url
        self.patience = patience
        self._engine = patiently(lambda: open_engine(url), patience)
        self._writing = writing(self._engine)
        self.leases = Leases(self._read, self._write, patience)
        self.retention = Retention(self._read, self._write, patience)
        self.read_only = read_only_file(url) is not None
        """Whether the registry cannot be written."""

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    # Artifacts

    @patient
    def add_artifact(self, manifest: Manifest, run_id: str | None = None) -> None:
        """Register an artifact. A known one keeps its row and gains the fingerprint if that is new."""
        with self._write() as session:
            if session.get(ArtifactTable, manifest.digest) is None:
                session.add(artifact_table(manifest, run_id))
                session.flush()
            if manifest.fingerprint:
                session.merge(FingerprintTable(fingerprint=manifest.fingerprint, digest=manifest.digest))

    @patient
    def artifact(self, digest: str) -> ArtifactRow | None:
        """The artifact with this full digest."""
        with self._read() as session:
            row = session.get(ArtifactTable, digest)
            return None if row is None else artifact_row(row)

    @patient
    def artifacts(self, kind: str | None = None, limit: int = 100) -> list[ArtifactRow]:
        """Newest first."""
        query = select(ArtifactTable).order_by(ArtifactTable.created.desc(), ArtifactTable.digest).limit(limit)
        return self._artifacts(query if kind is None else query.where(ArtifactTable.kind == kind))

    @patient
    def starting_with(self, prefix: str, limit: int = 10) -> list[ArtifactRow]:
        """Artifacts whose digest starts with `prefix`."""
        query = select(ArtifactTable).where(ArtifactTable.digest.startswith(prefix, autoescape=True))
        return self._artifacts(query.order_by(ArtifactTable.digest).limit(limit))

    @patient
    def digests(self) -> set[str]:
        """Every known digest, including those that are being removed."""
        with self._read() as session:
            removed = session.scalars(select(RemovalTable.digest))
            return {*session.scalars(select(ArtifactTable.digest)), *removed}

    @patient
    def parents(self, digest: str) -> list[ArtifactRow]:
        """The registered parents of an artifact, in the order of the stage's inputs."""
        query = select(ArtifactTable).join(EdgeTable, EdgeTable.parent == ArtifactTable.digest)
        return self._artifacts(query.where(EdgeTable.child == digest).order_by(EdgeTable.position))

    def ancestors(self, digest: str) -> list[ArtifactRow]:
        """All registered ancestors of an artifact, each once, nearest first."""
        known: dict[str, ArtifactRow] = {}
        nearest = self.parents(digest)
        while nearest:
            new = {row.digest: row for row in nearest if row.digest not in known}
            known |= new
            nearest = [parent for row in new for parent in self.parents(row)]
        return list(known.values())

    @patient
    def children(self, digest: str) -> list[ArtifactRow]:
        """The artifacts made from an artifact, oldest first."""
        made = select(EdgeTable.child).where(EdgeTable.parent == digest)
        query = select(ArtifactTable).where(ArtifactTable.digest.in_(made))
        return self._artifacts(query.order_by(ArtifactTable.created, ArtifactTable.digest))

    @patient
    def made_by(self, fingerprint: str) -> str | None:
        """Digest of the latest result of a stage with this fingerprint."""
        with self._read() as session:
            row = session.get(FingerprintTable, fingerprint)
            return None if row is None else row.digest

    # Aliases

    def set_alias(self, name: str, digest: str, reason: str) -> AliasRow:
        """Move an alias, and record why.

        Raises:
            ConfigError: the name is invalid.
            NotFoundError: no such artifact is registered.
        """
        check_alias(name)
        return self._move_alias(AliasRow(name=name, digest=digest, reason=reason, moved=datetime.now(UTC)))

    @patient
    def alias(self, name: str) -> AliasRow | None:
        """The alias as it is now."""
        with self._read() as session:
            row = session.get(AliasTable, name)
            return None if row is None else alias_row(row)

    @patient
    def aliases(self) -> list[AliasRow]:
        """Every alias, by name."""
        with self._read() as session:
            return [alias_row(row) for row in session.scalars(select(AliasTable).order_by(AliasTable.name))]

    @patient
    def alias_history(self, name: str) -> list[AliasMove]:
        """Every move of an alias, newest first."""
        query = select(AliasMoveTable).where(AliasMoveTable.name == name).order_by(AliasMoveTable.id.desc())
        with self._read() as session:
            return [move_row(row) for row in session.scalars(query)]

    # Runs

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

    # Annotations

    @patient
    def annotate(self, artifact: str, pair: str, annotator: str, choice: Choice) -> None:
        """Record a person's choice for a pair, replacing an earlier one."""
        row = AnnotationTable(artifact=artifact, pair=pair, annotator=annotator, choice=choice, made=datetime.now(UTC))
        with self._write() as session:
            session.merge(row)

    @patient
    def annotations(self, artifact: str, annotator: str | None = None) -> list[Annotation]:
        """The annotations of an artifact's pairs, oldest first."""
        query = select(AnnotationTable).where(AnnotationTable.artifact == artifact)
        if annotator is not None:
            query = query.where(AnnotationTable.annotator == annotator)
        query = query.order_by(AnnotationTable.made, AnnotationTable.pair, AnnotationTable.annotator)
        with self._read() as session:
            return [annotation(row) for row in session.scalars(query)]

    @patient
    def _add_run(self, /, **columns: Any) -> None:
        with self._write() as session:
            session.merge(RunTable(**columns))  # it exists already if the server went away just after the commit

    @patient
    def _move_alias(self, row: AliasRow) -> AliasRow:
        with self._write() as session:
            if session.get(ArtifactTable, row.digest) is None:
                raise NotFoundError(
                    f"No artifact {row.digest[:12]} for the alias {row.name!r}. `cupola artifacts` lists them."
                )
            current = session.get(AliasTable, row.name)
            if current is None or current.moved != row.moved:
                previous = None if current is None else current.digest
                columns = {"name": row.name, "digest": row.digest, "reason": row.reason, "moved": row.moved}
                session.merge(AliasTable(**columns))
                session.add(AliasMoveTable(previous=previous, **columns))
        return row

    def _artifacts(self, query: Any) -> list[ArtifactRow]:
        with self._read() as session:
            return [artifact_row(row) for row in session.scalars(query)]

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with refusals(self.url), Session(self._engine) as session:
            yield session

    @contextmanager
    def _write(self) -> Iterator[Session]:
        if self.read_only:
            raise RegistryError(
                f"The registry {self.url} is read-only. Change the permissions of its folder, or use another workspace."
            )
        with refusals(self.url), Session(self._writing) as session, session.begin():
            yield session


def _known_run(session: Session, run: str) -> RunTable:
    row = session.get(RunTable, run)
    if row is None:
        raise NotFoundError(f"No run {run!r}. `cupola runs` lists them.")
    return row
