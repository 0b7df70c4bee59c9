"""What a stage is given to work with: its folder, its seed, where to publish, and whom to tell how far it is."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from cupola_flows.terminal.display import Display
from cupola_platform.artifacts import Artifact
from cupola_platform.strict import Strict
from cupola_platform.tracking.tracker import Tracker
from cupola_platform.workspace import Workspace


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a step as it is. Under Prefect, a task with retries takes this one's place."""
    return function(*arguments)


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """One execution of one stage."""

    workspace: Workspace
    recipe: str
    """The recipe's name."""
    name: str
    """The stage's name in the recipe."""
    gives: str
    """The kind of the artifact that the stage publishes."""
    config: Mapping[str, Any]
    """The stage's settings as an artifact keeps them: with the seed in force, whoever gave it."""
    seed: int
    template_date: date | None = None
    """What chat templates take for today in this stage's jobs; none where it renders none."""
    stages: Mapping[str, Strict] = field(default_factory=dict)
    """All stages of the recipe."""
    seeds: Mapping[str, int] = field(default_factory=dict)
    """The seed of each of them."""
    fingerprint: str
    run_id: str
    """The registry's run."""
    folder: Path
    """Work folder of this fingerprint; a job in it resumes."""
    display: Display
    tracker: Tracker | None = None
    """Where the job's numbers go besides its folder; none without tracking."""
    step: Callable[..., Any] = field(default=call)
    """How a step that may be retried is called."""
    part: str = ""
    """Before the names of a job's metrics, where a stage has several jobs with the same steps."""
    profile: tuple[int, int] | None = None
    """First and last training step to trace with torch's profiler."""

    def empty(self, name: str) -> Path:
        """A new, empty folder inside the work folder."""
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def publish(self, folder: Path, *, parents: Sequence[Artifact], metrics: dict[str, float]) -> Artifact:
        """Seal `folder`, store it, and register it as what this stage gives."""
        return self.workspace.publish(
            folder,
            kind=self.gives,
            parents=parents,
            stage=self.name,
            recipe=self.recipe,
            fingerprint=self.fingerprint,
            config=dict(self.config),
            metrics=metrics,
            run_id=self.run_id,
        )

    def publish_aside(
        self,
        folder: Path,
        *,
        kind: str,
        parents: Sequence[Artifact],
        metrics: dict[str, float],
        config: Mapping[str, Any] | None = None,
        fingerprint: str = "",
    ) -> Artifact:
        """The same with something that the stage makes on the way. It is found again where it has a fingerprint.

        Args:
            config: what decides it; none for the stage's own.
        """
        return self.workspace.publish(
            folder,
            kind=kind,
            parents=parents,
            stage=f"{self.name}-{kind}",
            recipe=self.recipe,
            fingerprint=fingerprint,
            config=dict(self.config if config is None else config),
            metrics=metrics,
        )
