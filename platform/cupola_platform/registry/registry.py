"""All reads and writes of the registry; those of runs are in `runs`."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select

from cupola_platform.aliases import check_alias
from cupola_platform.artifacts import Manifest
from cupola_platform.errors import NotFoundError
from cupola_platform.registry.conversion import alias_row, annotation, artifact_row, artifact_table, move_row
from cupola_platform.registry.database import PATIENCE, patient
from cupola_platform.registry.leases import Leases
from cupola_platform.registry.retention import Retention
from cupola_platform.registry.rows import AliasMove, AliasRow, Annotation, ArtifactRow, Choice
from cupola_platform.registry.runs import Runs
from cupola_platform.registry.tables import (
    AliasMoveTable,
    AliasTable,
    AnnotationTable,
    ArtifactTable,
    EdgeTable,
    FingerprintTable,
    RemovalTable,
)


class Registry(Runs):
    """The registry at a SQLAlchemy URL. Its schema is migrated on open.

    Every method raises RegistryError if the database cannot be reached or refuses.
    """

    def __init__(self, url: str, patience: float = PATIENCE) -> None:
        """See `Connection`."""
        super().__init__(url, patience)
        self.leases = Leases(self._read, self._write, patience)
        self.retention = Retention(self._read, self._write, patience)

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
