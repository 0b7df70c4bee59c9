"""What a stage is given to work with: its folder, its seed, where to publish, and whom to tell how far it is."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from cupola_flows.display import Display
from cupola_flows.schema import Recipe
from cupola_platform.artifacts import Artifact
from cupola_platform.tracking.tracker import Tracker
from cupola_platform.workspace import Workspace


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a step as it is. Under Prefect, a task with retries takes this one's place."""
    return function(*arguments)


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """One execution of one stage."""

    workspace: Workspace
    recipe: Recipe
    name: str
    """The stage's name in the recipe."""
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

    @property
    def seed(self) -> int:
        return self.recipe.stage_seed(self.name)

    @property
    def config(self) -> dict[str, Any]:
        """The stage's settings as an artifact keeps them: with the seed in force, whoever gave it."""
        return self.recipe.stages[self.name].model_dump(mode="json") | {"seed": self.seed}

    @property
    def template_date(self) -> date | None:
        """What chat templates take for today in this stage's jobs; none where it renders none."""
        return self.recipe.template_date if self.recipe.stages[self.name].renders else None

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
            kind=self.recipe.stages[self.name].gives,
            parents=parents,
            stage=self.name,
            recipe=self.recipe.name,
            fingerprint=self.fingerprint,
            config=self.config,
            metrics=metrics,
            run_id=self.run_id,
        )
