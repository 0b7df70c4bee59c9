"""The context of a running stage: its folder and seed, publishing, and progress."""

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from cupola_flows.execution.leasing import Lease
from cupola_flows.execution.places import Slots
from cupola_flows.terminal.display import Display
from cupola_platform.artifacts import Artifact
from cupola_platform.errors import StoreError
from cupola_platform.launch.unshared.launcher import clear
from cupola_platform.strict import Strict
from cupola_platform.tracking.tracker import Tracker
from cupola_platform.workspace import Workspace


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a step directly. Under Prefect, a task with retries replaces this."""
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
    """The stage's settings as saved in the artifact, with the effective seed."""
    seed: int
    template_date: date | None = None
    """Today's date for chat templates in this stage's jobs; None if it renders none."""
    stages: Mapping[str, Strict] = field(default_factory=dict)
    """All stages of the recipe."""
    seeds: Mapping[str, int] = field(default_factory=dict)
    """The seed of each stage."""
    fingerprint: str
    run_id: str
    """Id of the stage's run in the registry."""
    folder: Path
    """Work folder of this fingerprint, from which jobs resume."""
    display: Display
    tracker: Tracker | None = None
    """Receives the jobs' metrics; None without tracking."""
    step: Callable[..., Any] = field(default=call)
    """Calls a step that may be retried."""
    part: str = ""
    """Prefix of a job's metric names, for stages with several jobs."""
    run_on: str | None = None
    """Cluster of `cupola.toml` that runs this stage's jobs; None for this machine."""
    slots: Slots | None = None
    """Takes the ranks of that place for a job; None outside of a session."""
    lease: Lease | None = None
    """This process's right to run the stage; None outside of a session."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Set when the run was cancelled on purpose: then its job ends too, wherever it runs."""
    profile: tuple[int, int] | None = None
    """First and last training step to trace with torch's profiler."""

    @contextmanager
    def taking(self, ranks: int, *, wait: bool = True) -> Iterator[None]:
        """Hold ranks of the place where the stage's jobs run while the block runs; see `Slots`."""
        with self.slots.taken(ranks, wait=wait) if self.slots else nullcontext():
            yield

    def empty(self, name: str) -> Path:
        """A new, empty folder inside the work folder."""
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def publish(
        self,
        folder: Path,
        *,
        parents: Sequence[Artifact],
        metrics: dict[str, float],
        known: Mapping[str, tuple[int, str]] | None = None,
    ) -> Artifact:
        """Seal `folder`, store it, register it as this stage's artifact, and remove from the store what its jobs
        exchanged there. `known`: see `artifacts.seal`."""
        artifact = self.workspace.publish(
            folder,
            kind=self.gives,
            parents=parents,
            stage=self.name,
            recipe=self.recipe,
            fingerprint=self.fingerprint,
            config=dict(self.config),
            metrics=metrics,
            run_id=self.run_id,
            known=known,
        )
        try:
            clear(self.workspace.settings, self.folder)
        except StoreError as error:
            self.display.say(f"{self.name}: what its nodes exchanged could not be removed from the store: {error}")
        return artifact

    def publish_aside(
        self,
        folder: Path,
        *,
        kind: str,
        parents: Sequence[Artifact | str],
        metrics: dict[str, float],
        config: Mapping[str, Any] | None = None,
        fingerprint: str = "",
        known: Mapping[str, tuple[int, str]] | None = None,
    ) -> Artifact:
        """Publish an intermediate artifact of this stage. With a fingerprint it can be found and reused.

        Args:
            config: everything that determines it; None for the stage's own settings.
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
            known=known,
        )
