"""The rows that the registry returns: frozen, and not bound to the database."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

RunStatus = Literal["running", "completed", "reused", "failed", "cancelled", "detached"]
"""`detached`: nobody follows the run any more, but its job goes on."""
CONTINUED = "continued as run "
"""Beginning of the error of a detached run whose job a later run follows."""
Choice = Literal["chosen", "rejected", "tie", "skip"]
"""Which response of a pair a person preferred, by its name in the pair."""


@dataclass(frozen=True, kw_only=True)
class ArtifactRow:
    """One registered artifact."""

    digest: str
    kind: str
    stage: str
    recipe: str
    fingerprint: str
    config: dict[str, Any]
    metrics: dict[str, float]
    parents: tuple[str, ...]
    """Digests, in the order of the stage's inputs."""
    size: int
    """Total bytes of all files."""
    files: int
    """Number of files."""
    run_id: str | None
    """The run that made it."""
    created: datetime
    """UTC."""

    @property
    def id(self) -> str:
        """The first 12 characters of the digest."""
        return self.digest[:12]


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One execution of a stage, or of a recipe when `stage` is empty."""

    id: str
    parent_id: str | None
    recipe: str
    stage: str
    status: RunStatus
    config: dict[str, Any]
    metrics: dict[str, float]
    started: datetime
    """UTC."""
    ended: datetime | None
    artifact: str | None
    """Digest of what it made or reused."""
    prefect_flow_run_id: str | None
    mlflow_run_id: str | None
    work_folder: Path | None
    error: str | None
    pid: int
    process_start: str
    """`liveness.start_of` its process."""
    host: str

    @property
    def lost(self) -> bool:
        """Whether its process ended without reporting a result."""
        return self.status == "failed" and (self.error or "").startswith("lost: ")

    @property
    def label(self) -> str:
        """The status for display."""
        if self.continued:
            return "continued"
        return "failed (lost)" if self.lost else self.status

    @property
    def continued(self) -> bool:
        """Whether a later run took over its job."""
        return self.status == "cancelled" and (self.error or "").startswith(CONTINUED)


@dataclass(frozen=True, kw_only=True)
class AliasRow:
    """A movable name and the artifact it names now."""

    name: str
    digest: str
    reason: str
    moved: datetime


@dataclass(frozen=True, kw_only=True)
class AliasMove:
    """One move of an alias."""

    name: str
    previous: str | None
    """The digest it named before; None for the first move."""
    digest: str
    reason: str
    moved: datetime


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """A person's choice for a pair of responses."""

    artifact: str
    """Digest of the artifact that contains the pair."""
    pair: str
    annotator: str
    choice: Choice
    made: datetime
    """UTC."""
