"""The registry's tables."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, ForeignKey, Index, MetaData, String, Text, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_name)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}
"""Constraints are named, so that a later migration can drop them on every database."""


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware datetime in UTC; SQLite drops the zone, so it is restored."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Table(DeclarativeBase):
    """Base of all tables."""

    metadata = MetaData(naming_convention=NAMING)


class ArtifactTable(Table):
    """One artifact: its manifest without the files."""

    __tablename__ = "artifact"
    __table_args__ = (Index("ix_artifact_kind_created", "kind", "created"),)

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(64))
    stage: Mapped[str] = mapped_column(String(128))
    recipe: Mapped[str] = mapped_column(String(128))
    fingerprint: Mapped[str] = mapped_column(String(64))
    config: Mapped[dict[str, Any]] = mapped_column(JSON)
    metrics: Mapped[dict[str, float]] = mapped_column(JSON)
    size: Mapped[int] = mapped_column(BigInteger)
    files: Mapped[int]
    run_id: Mapped[str | None] = mapped_column(ForeignKey("run.id", ondelete="SET NULL"))
    created: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    used: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """When someone last looked it up, to use it."""
    edges: Mapped[list["EdgeTable"]] = relationship(order_by="EdgeTable.position", lazy="selectin")


class EdgeTable(Table):
    """One parent of an artifact. It is no foreign key, because the parent may be in another registry only."""

    __tablename__ = "edge"

    child: Mapped[str] = mapped_column(ForeignKey("artifact.digest", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    parent: Mapped[str] = mapped_column(String(64), index=True)


class FingerprintTable(Table):
    """A stage's result; several fingerprints may have the same content."""

    __tablename__ = "fingerprint"

    fingerprint: Mapped[str] = mapped_column(String(64), primary_key=True)
    digest: Mapped[str] = mapped_column(ForeignKey("artifact.digest", ondelete="CASCADE"), index=True)


class RunTable(Table):
    """One execution of a stage, or of a recipe."""

    __tablename__ = "run"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("run.id", ondelete="CASCADE"), index=True)
    recipe: Mapped[str] = mapped_column(String(128))
    stage: Mapped[str] = mapped_column(String(128))
    status: Mapped[str] = mapped_column(String(16), index=True)
    config: Mapped[dict[str, Any]] = mapped_column(JSON)
    metrics: Mapped[dict[str, float]] = mapped_column(JSON)
    started: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    ended: Mapped[datetime | None] = mapped_column(UtcDateTime)
    artifact: Mapped[str | None] = mapped_column(String(64))
    prefect_flow_run_id: Mapped[str | None] = mapped_column(String(64))
    mlflow_run_id: Mapped[str | None] = mapped_column(String(64))
    work_folder: Mapped[str | None] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(Text)
    pid: Mapped[int] = mapped_column(BigInteger)
    process_start: Mapped[str] = mapped_column(String(64), server_default="")
    """`liveness.start_of` the process: tells it from a later one with the same PID."""
    host: Mapped[str] = mapped_column(String(255))


class AliasTable(Table):
    """A movable name."""

    __tablename__ = "alias"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    digest: Mapped[str] = mapped_column(ForeignKey("artifact.digest"))
    reason: Mapped[str] = mapped_column(Text)
    moved: Mapped[datetime] = mapped_column(UtcDateTime)


class AliasMoveTable(Table):
    """One move of an alias."""

    __tablename__ = "alias_move"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(String(64), index=True)
    previous: Mapped[str | None] = mapped_column(String(64))
    digest: Mapped[str] = mapped_column(String(64))
    reason: Mapped[str] = mapped_column(Text)
    moved: Mapped[datetime] = mapped_column(UtcDateTime)


class AnnotationTable(Table):
    """A person's choice for a pair of responses; a new choice replaces the old one."""

    __tablename__ = "annotation"

    artifact: Mapped[str] = mapped_column(ForeignKey("artifact.digest", ondelete="CASCADE"), primary_key=True)
    pair: Mapped[str] = mapped_column(String(255), primary_key=True)
    annotator: Mapped[str] = mapped_column(String(64), primary_key=True)
    choice: Mapped[str] = mapped_column(String(16))
    made: Mapped[datetime] = mapped_column(UtcDateTime)


class RemovalTable(Table):
    """An artifact that is being removed: no longer registered, its files perhaps still there."""

    __tablename__ = "removal"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(64))
    stage: Mapped[str] = mapped_column(String(128))
    size: Mapped[int] = mapped_column(BigInteger)


class LeaseTable(Table):
    """A stage in progress: who runs it, and where its job is."""

    __tablename__ = "lease"

    fingerprint: Mapped[str] = mapped_column(String(64), primary_key=True)
    holder: Mapped[str] = mapped_column(String(32))
    """Empty once its holder left the job to itself."""
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int] = mapped_column(BigInteger)
    process_start: Mapped[str] = mapped_column(String(64))
    expires: Mapped[datetime] = mapped_column(UtcDateTime)
    cluster: Mapped[str | None] = mapped_column(String(64))
    job: Mapped[str | None] = mapped_column(String(255))
