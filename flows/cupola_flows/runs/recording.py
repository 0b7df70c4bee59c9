"""What a session leaves in the registry and MLflow: the run of its recipe, those of its stages, and how each ended."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cupola_flows.recipe.schema import Recipe
from cupola_flows.terminal.display import Display
from cupola_platform.artifacts import Artifact
from cupola_platform.errors import CancelledError, DetachedError
from cupola_platform.registry import RunStatus
from cupola_platform.tracking.tracker import Tracker
from cupola_platform.workspace import Workspace


class Recorder:
    """Records the runs of one session."""

    def __init__(self, workspace: Workspace, recipe: Recipe, display: Display) -> None:
        self.workspace, self.recipe, self.display = workspace, recipe, display
        self.tracker: Tracker | None = None
        """Sends to MLflow while the recipe's run is recorded."""
        self._recipe_run: str | None = None
        """Id of the whole recipe's run in the registry."""
        self._reused: set[str] = set()

    @contextmanager
    def of_recipe(self, config: dict[str, Any], prefect_id: str | None) -> Iterator[None]:
        """Record the run of the whole recipe while the block runs."""
        with Tracker.open(self.workspace, self.display.say) as self.tracker:
            run = self._recipe_run = self._start("", config)
            self.workspace.registry.update_run(run, prefect_flow_run_id=prefect_id)
            try:
                yield
            except BaseException as error:
                self.finish(run, _status_of(error), error=error)
                raise
            self.finish(run, "completed")

    @contextmanager
    def of_stage(self, name: str, folder: Path, prefect_id: str | None) -> Iterator[str]:
        """Record a stage's run while the block runs; an error that ends it is recorded and shown. Yields the run's id,
        for `finish`."""
        run = self._start(name, self.recipe.stages[name].model_dump(mode="json"))
        self.workspace.registry.update_run(run, prefect_flow_run_id=prefect_id, work_folder=folder)
        self.display.started(name)
        try:
            yield run
        except BaseException as error:
            ended = as_cancellation(error, name)
            status = _status_of(ended)
            self.finish(run, status, error=ended)
            self.display.finished(name, status, str(ended).splitlines()[0])
            if ended is error:
                raise
            raise ended from error

    def finish(
        self, run: str, status: RunStatus, artifact: Artifact | None = None, error: BaseException | None = None
    ) -> None:
        """Record how a run ended."""
        metrics = artifact.metrics if artifact else {}
        text = (str(error) or type(error).__name__) if error else None
        self.workspace.registry.finish_run(run, status, artifact.digest if artifact else None, text, metrics)
        if self.tracker:
            tags = {"cupola.artifact": artifact.digest, "cupola.path": str(artifact.path)} if artifact else {}
            self.tracker.end_run(run, status, metrics=metrics, tags=tags)

    def reuse(self, name: str, artifact: Artifact) -> None:
        """Record, once, that a stage's artifact was there already."""
        if name not in self._reused:
            self._reused.add(name)
            self.finish(self._start(name, {}), "reused", artifact)

    def reuse_all(self, artifacts: Mapping[str, Artifact]) -> None:
        """Record a run whose stages were all there already."""
        self._recipe_run = self._start("", {})
        for name, artifact in artifacts.items():
            self.reuse(name, artifact)
        self.finish(self._recipe_run, "reused")

    def _start(self, name: str, config: dict[str, Any]) -> str:
        run = self.workspace.registry.start_run(self.recipe.name, name, self._recipe_run, config)
        if self.tracker:
            title = name or self.recipe.name
            self.tracker.open_run(
                run, title, parent=self._recipe_run, params=config, tags={"cupola.recipe": self.recipe.name}
            )
        return run


def as_cancellation(error: BaseException, name: str) -> BaseException:
    """Turn signals into CancelledError; other exceptions stay unchanged."""
    if isinstance(error, Exception):
        return error
    return CancelledError(f"stage {name} was cancelled. Finished work is kept. Run the same command to resume.")


def _status_of(error: BaseException) -> RunStatus:
    if isinstance(error, DetachedError):
        return "detached"
    return "cancelled" if isinstance(error, CancelledError) else "failed"
