"""What the workspace knows of its artifacts, runs and aliases: SQLAlchemy on SQLite or PostgreSQL."""

from cupola_platform.registry.registry import Registry
from cupola_platform.registry.rows import AliasMove, AliasRow, ArtifactRow, RunRow, RunStatus

__all__ = ["AliasMove", "AliasRow", "ArtifactRow", "Registry", "RunRow", "RunStatus"]
