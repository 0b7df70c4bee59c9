"""Artifacts, runs, aliases and annotations of a workspace, in SQLite or PostgreSQL by SQLAlchemy."""

from cupola_platform.registry.database import PATIENCE
from cupola_platform.registry.registry import Registry
from cupola_platform.registry.rows import AliasMove, AliasRow, Annotation, ArtifactRow, Choice, RunRow, RunStatus

__all__ = [
    "PATIENCE",
    "AliasMove",
    "AliasRow",
    "Annotation",
    "ArtifactRow",
    "Choice",
    "Registry",
    "RunRow",
    "RunStatus",
]
