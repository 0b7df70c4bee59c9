"""One execution of a recipe: its stages, their inputs and their outcomes. Independent of Prefect."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from cupola_flows.execution.context import StageContext, call
from cupola_flows.execution.leasing import BusyError, leased
from cupola_flows.execution.places import Limits, Place, Slots, place_of
from cupola_flows.recipe.schema import Recipe
from cupola_flows.runs.fingerprint import fingerprint
from cupola_flows.runs.recording import Recorder, as_cancellation
from cupola_flows.runs.work_folders import check_is_here, locked
from cupola_flows.stages.base import ARTIFACT, Stage, Taken
from cupola_flows.terminal.display import Display
from cupola_platform.artifacts import Artifact
from cupola_platform.artifacts.elsewhere import Elsewhere
from cupola_platform.errors import ConfigError, CupolaError, DetachedError
from cupola_platform.launch.launcher import is_unshared
from cupola_platform.registry import RunStatus
from cupola_platform.workspace import Workspace

ONLY = "only"
"""In the settings of a recipe's run, beside the recipe's own: the stages that were selected."""
BUSY_EVERY = 2.0
"""Seconds between looks whether another command has finished a stage."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a stage."""

    state: RunStatus
    artifact: Artifact
    seconds: float


@dataclass(kw_only=True)
class Session:
    """Runs the stages `names` of a recipe in a workspace; `scheduling` says when each."""

    workspace: Workspace
    recipe: Recipe
    names: Sequence[str]
    display: Display
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    error: CupolaError | None = None
    """Why the run ended early."""
    overrides: Sequence[str] = ()
    """The overrides as given, for the record."""
    profile: tuple[int, int] | None = None
    """First and last step of each training job to trace with torch's profiler."""
    prefect_run: str | None = None
    """Id of the whole recipe's flow run."""
    prefect_is_gone: threading.Event = field(default_factory=threading.Event)
    """Set once Prefect's server stops responding; the run continues without it."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Set when the run was cancelled on Prefect's server, unlike a command that ends: jobs on clusters end too."""
    limits: Limits | None = None
    """Counts the ranks that all runs of a Prefect server take; None without one."""
    waits: bool = False
    """Whether to wait for a stage that another command runs, as submitted runs do, rather than refuse it."""
    records: Recorder = field(init=False)

    def __post_init__(self) -> None:
        self.records = Recorder(self.workspace, self.recipe, self.display)

    @property
    def complete(self) -> bool:
        return all(name in self.outcomes for name in self.names)

    @contextmanager
    def recorded(self, prefect_id: str | None) -> Iterator[None]:
        """Record the run of the whole recipe, and how it ends, in the registry and MLflow."""
        self.prefect_run = prefect_id
        with self.records.of_recipe(self.recipe.model_dump(mode="json") | {ONLY: list(self.names)}, prefect_id):
            try:
                yield
            except BaseException as error:
                ended = as_cancellation(error, self.recipe.name)
                self.error = self.error or (ended if isinstance(ended, CupolaError) else None)
                if ended is error:
                    raise
                raise ended from error

    def lose_prefect(self, reason: str) -> None:
        """Continue without Prefect's server, and print so once."""
        if not self.prefect_is_gone.is_set():
            self.prefect_is_gone.set()
            self.display.say(f"Prefect's server does not respond ({reason}). The run continues without it.")

    def prefect_ids(self) -> list[str]:
        """The flow runs through which this session can be cancelled."""
        return [self.prefect_run] if self.prefect_run else []

    def reuse(self, name: str) -> Artifact | None:
        """The stage's earlier artifact with the same fingerprint; None if the stage has to run."""
        if name in self.outcomes:
            return self.outcomes[name].artifact
        inputs = self._known_inputs(name)
        artifact = self.workspace.find(self.fingerprint(name, inputs), partly=True) if inputs is not None else None
        if artifact is None:
            return None
        if name in self.names:
            self.display.finished(name, "reused", f"artifact {artifact.id}")
        self.outcomes[name] = Outcome("reused", artifact, 0.0)
        return artifact

    def reuse_all(self) -> bool:
        """Whether every stage can be reused. If so, records a run that says so."""
        if any(self.reuse(name) is None for name in self.names):
            return False
        self.records.reuse_all({name: self.outcomes[name].artifact for name in self.names})
        return True

    def execute(self, name: str, *, step: Callable[..., Any] = call, prefect_id: str | None = None) -> Artifact:
        """Reuse the stage's artifact, or run the stage.

        Raises:
            CupolaError: the stage failed; also kept in `self.error`.
        """
        try:
            made = name in self.outcomes and self.outcomes[name].state == "completed"
            reused = self.reuse(name)
            if reused and not made:
                self.records.reuse(name, reused)
            return reused or self._make_in_turn(name, step, prefect_id)
        except CupolaError as error:
            if self.error is None or isinstance(error, DetachedError):  # several may run at once
                self.error = error
            raise

    def inputs(self, name: str) -> Taken:
        """The stage's input artifacts. Raises ConfigError if an unselected stage has not been run."""
        return Taken(
            {
                field: {reference: self._artifact(name, reference) for reference in references}
                for field, references in self.recipe.inputs(name).items()
            }
        )

    def resolved(self, name: str) -> Stage:
        """The stage with its inputs as `artifact:ID`, so that it can be run alone."""
        stage = self.recipe.stages[name]
        references = {
            field: tuple(f"{ARTIFACT}{artifact.id}" for artifact in artifacts.values())
            for field, artifacts in self.inputs(name).fields.items()
            if field in type(stage).model_fields
        }
        several = {field for field in references if isinstance(getattr(stage, field), tuple)}
        return stage.model_copy(
            update={
                field: named if field in several else next(iter(named), None) for field, named in references.items()
            }
        )

    def fingerprint(self, name: str, taken: Taken) -> str:
        """See `fingerprint.fingerprint`."""
        digests = {
            field: [artifact.digest for artifact in artifacts.values()] for field, artifacts in taken.fields.items()
        }
        return fingerprint(self.recipe, name, digests)

    def place(self, name: str) -> Place:
        """Where a stage's jobs run."""
        return place_of(self.workspace.settings, self.cluster(name))

    def cluster(self, name: str) -> str | None:
        """The cluster of a stage's jobs; None for this machine."""
        return self.recipe.stages[name].cluster(self.recipe.run_on, self.workspace.settings.clusters)

    def _make_in_turn(self, name: str, step: Callable[..., Any], prefect_id: str | None) -> Artifact:
        """Make the stage's artifact, or wait while another command makes it."""
        said = False
        while True:
            try:
                return self._make(name, step, prefect_id)
            except BusyError as busy:
                if not self.waits:
                    raise
                if not said:
                    self.display.say(f"{str(busy).partition('. ')[0]}. Waiting for it.")
                said = True
            time.sleep(BUSY_EVERY)
            if made := self.reuse(name):
                self.records.reuse(name, made)
                return made

    def _make(self, name: str, step: Callable[..., Any], prefect_id: str | None) -> Artifact:
        stage = self.recipe.stages[name]
        taken = self.inputs(name)
        mark = self.fingerprint(name, taken)
        folder = self.workspace.work_folder(mark)
        registry = self.workspace.registry
        with (
            locked(folder, name, self.display.say),
            leased(registry, mark, name) as lease,
            self.records.of_stage(name, folder, prefect_id) as run_id,
        ):
            check_is_here(self.workspace, folder, lease.job, name)
            registry.take_over(folder, run_id)
            seeds = self.recipe.seeds()
            ctx = StageContext(
                workspace=self.workspace,
                recipe=self.recipe.name,
                name=name,
                gives=stage.gives,
                config=stage.model_dump(mode="json") | {"seed": seeds[name]},
                seed=seeds[name],
                template_date=self.recipe.template_date if stage.renders else None,
                stages=self.recipe.stages,
                seeds=seeds,
                fingerprint=mark,
                run_id=run_id,
                folder=folder,
                display=self.display,
                tracker=self.records.tracker,
                step=step,
                run_on=self.cluster(name),
                slots=Slots(self.place(name), self._limits(), partial(self._say_of, name)),
                lease=lease,
                cancelled=self.cancelled,
                profile=self.profile,
            )
            self._complete(name, taken)
            artifact = stage.run(ctx, taken)
            lease.check()
        self.outcomes[name] = Outcome("completed", artifact, self.display.lines[name].elapsed())
        self.records.finish(run_id, "completed", artifact)
        self.display.finished(name, "completed", f"artifact {artifact.id}")
        return artifact

    def _complete(self, name: str, taken: Taken) -> None:
        """Fetch what the inputs lack, unless the stage's nodes fetch for themselves what they need."""
        if is_unshared(self.workspace.settings, self.cluster(name)):
            return
        for artifact in taken.all():
            if Elsewhere.read(artifact.path):
                self.workspace.store.get(artifact.digest)

    def _limits(self) -> Limits | None:
        return None if self.prefect_is_gone.is_set() else self.limits

    def _say_of(self, name: str, text: str) -> None:
        self.display.say(f"{name}: {text}.")
        self.display.note(name, text)

    def _known_inputs(self, name: str) -> Taken | None:
        for parent in self.recipe.parents(name):
            if self.reuse(parent) is None:
                return None
        return self.inputs(name)

    def _artifact(self, name: str, reference: str) -> Artifact:
        if reference.startswith(ARTIFACT):
            return self.workspace.resolve(reference.removeprefix(ARTIFACT))
        if reference not in self.outcomes:
            raise ConfigError(
                f"stage {name} needs {reference}, which has not been run. Run it first, or add it to --only."
            )
        return self.outcomes[reference].artifact
