"""Conversion between the database's rows and the frozen rows that the registry returns."""

from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from cupola_platform.artifacts import Manifest
from cupola_platform.registry.rows import AliasMove, AliasRow, Annotation, ArtifactRow, Choice, RunRow, RunStatus
from cupola_platform.registry.tables import (
    AliasMoveTable,
    AliasTable,
    AnnotationTable,
    ArtifactTable,
    EdgeTable,
    RunTable,
)


def artifact_table(manifest: Manifest, run_id: str | None) -> ArtifactTable:
    """An artifact's row and its edges, from its manifest."""
    return ArtifactTable(
        digest=manifest.digest,
        kind=manifest.kind,
        stage=manifest.stage,
        recipe=manifest.recipe,
        fingerprint=manifest.fingerprint,
        config=manifest.config,
        metrics=manifest.metrics,
        size=manifest.size,
        files=len(manifest.files),
        run_id=run_id,
        created=datetime.fromisoformat(manifest.created),
        used=datetime.now(UTC),
        edges=[EdgeTable(position=position, parent=parent) for position, parent in enumerate(manifest.parents)],
    )


def artifact_row(row: ArtifactTable) -> ArtifactRow:
    return ArtifactRow(
        digest=row.digest,
        kind=row.kind,
        stage=row.stage,
        recipe=row.recipe,
        fingerprint=row.fingerprint,
        config=row.config,
        metrics=row.metrics,
        parents=tuple(edge.parent for edge in row.edges),
        size=row.size,
        files=row.files,
        run_id=row.run_id,
        created=row.created,
    )


def run_row(row: RunTable) -> RunRow:
    return RunRow(
        id=row.id,
        parent_id=row.parent_id,
        recipe=row.recipe,
        stage=row.stage,
        status=cast(RunStatus, row.status),
        config=row.config,
        metrics=row.metrics,
        started=row.started,
        ended=row.ended,
        artifact=row.artifact,
        prefect_flow_run_id=row.prefect_flow_run_id,
        mlflow_run_id=row.mlflow_run_id,
        work_folder=Path(row.work_folder) if row.work_folder else None,
        error=row.error,
        pid=row.pid,
        process_start=row.process_start,
        host=row.host,
    )


def alias_row(row: AliasTable) -> AliasRow:
    return AliasRow(name=row.name, digest=row.digest, reason=row.reason, moved=row.moved)


def move_row(row: AliasMoveTable) -> AliasMove:
    return AliasMove(name=row.name, previous=row.previous, digest=row.digest, reason=row.reason, moved=row.moved)


def annotation(row: AnnotationTable) -> Annotation:
    return Annotation(
        artifact=row.artifact,
        pair=row.pair,
        annotator=row.annotator,
        choice=cast(Choice, row.choice),
        made=row.made,
    )
