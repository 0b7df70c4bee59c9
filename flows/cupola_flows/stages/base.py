"""The base of every stage: settings, inputs, one artifact."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from pydantic import Field, model_validator

from cupola_flows.execution.context import StageContext
from cupola_flows.execution.places import Place
from cupola_flows.terminal.text import number
from cupola_platform.artifacts import Artifact
from cupola_platform.clusters import Cluster
from cupola_platform.strict import Strict
from cupola_trainer.config import LayoutConfig, ModelConfig
from cupola_trainer.config.layout_rules import validate_layout

FINGERPRINTED = False  # defines what a stage is, not what one does

ARTIFACT = "artifact:"
"""Prefix of an id or alias in the registry, where a recipe names an input that exists already."""


class Stages(Protocol):
    """What a guess can see of a recipe: its stages in order, and their inputs."""

    @property
    def stages(self) -> "Mapping[str, Stage]": ...

    def references(self, name: str, field: str) -> tuple[str, ...]:
        """The stages or `artifact:ID` of a stage's input field, guesses included."""


Guess = Callable[[Stages, str, str], tuple[str, ...]]
"""Function of the recipe's stages, a stage's name and the kind it needs. Returns the stages to take it from."""


def nearest(recipe: Stages, name: str, kind: str) -> tuple[str, ...]:
    """The nearest earlier stage that gives this kind."""
    return _earlier(recipe, name, kind)[-1:]


def every_trained(recipe: Stages, name: str, kind: str) -> tuple[str, ...]:
    """Every earlier stage that gives this kind, except those whose checkpoints need more training first."""
    return tuple(stage for stage in _earlier(recipe, name, kind) if recipe.stages[stage].ready)


def _earlier(recipe: Stages, name: str, kind: str) -> tuple[str, ...]:
    earlier = list(recipe.stages)[: list(recipe.stages).index(name)]
    return tuple(stage for stage in earlier if recipe.stages[stage].gives == kind)


@dataclass(frozen=True)
class Input:
    """Marks a stage's field as an input, which names another stage or `artifact:ID`."""

    kind: str
    """Kind of the artifact."""
    guess: Guess | None = nearest
    """Chooses the input if a recipe leaves the field out; None to take nothing."""
    optional: bool = False
    """Whether the stage can run without it. An input that is never guessed is always optional."""

    @property
    def needed(self) -> bool:
        return self.guess is not None and not self.optional


@dataclass(frozen=True)
class Taken:
    """The input artifacts of a stage."""

    fields: Mapping[str, Mapping[str, Artifact]]
    """Field to artifacts, keyed by the recipe's references."""

    def one(self, field: str) -> Artifact:
        """The artifact of a required field."""
        return next(iter(self.fields[field].values()))

    def maybe(self, field: str) -> Artifact | None:
        """The artifact of a field, if there is one."""
        return next(iter(self.fields[field].values()), None)

    def named(self, field: str) -> Mapping[str, Artifact]:
        """All artifacts of a field, by reference."""
        return self.fields[field]

    def all(self, *fields: str) -> list[Artifact]:
        """All artifacts of these fields, in this order; of every field if none is named."""
        return [artifact for field in fields or self.fields for artifact in self.fields[field].values()]


class Stage(Strict):
    """One typed step of a recipe, from input artifacts to one artifact.

    A subclass adds `kind: Literal[NAME] = NAME`, its settings and its inputs, which are fields like `parent:
    Annotated[str | None, Input("checkpoint")] = None`.
    """

    kind: str
    """Kind of the stage. Optional if the stage's name is a kind."""
    gives: ClassVar[str]
    """Kind of the artifact."""
    renders: ClassVar[bool] = False
    """Whether it renders chat templates, so that its tokens depend on the recipe's `template_date`."""
    ready: ClassVar[bool] = True
    """Whether its checkpoint is worth evaluating before further training."""

    sends_jobs: ClassVar[bool] = False
    """Whether `run_on` applies although the stage has no layout of its own."""
    keeps_its_place: ClassVar[bool] = False
    """Whether it runs after all stages before it in the recipe and before all after it, and beside none: it changes
    what they may read, such as an alias."""

    seed: int | None = Field(default=None, ge=0, lt=2**31)
    """Seed of this stage; None for the recipe's seed."""
    run_on: str | None = None
    """Cluster of `cupola.toml` that runs this stage's jobs; None for the recipe's, or for this machine."""

    @model_validator(mode="after")
    def _starts_jobs(self) -> "Stage":
        if self.run_on is not None and not self._sends_jobs():
            raise ValueError(f"run_on={self.run_on}: a stage of kind {self.kind} starts no jobs. Leave it out")
        return self

    @classmethod
    def inputs(cls) -> dict[str, Input]:
        """Input fields by name."""
        return {
            name: mark for name, field in cls.model_fields.items() for mark in field.metadata if isinstance(mark, Input)
        }

    @property
    def code(self) -> tuple[str, ...]:
        """Modules whose code, with everything that they import, decides the stage's result."""
        return (type(self).__module__,)

    @classmethod
    def _sends_jobs(cls) -> bool:
        return cls.sends_jobs or "layout" in cls.model_fields

    def cluster(self, of_recipe: str | None, clusters: Mapping[str, Cluster]) -> str | None:
        """The cluster to which the stage sends its jobs; None for this machine.

        Args:
            of_recipe: `run_on` of the recipe.
            clusters: those of the settings.
        """
        return self.run_on or (of_recipe if self._sends_jobs() else None)

    def check_cluster(self, cluster: Cluster | None) -> None:
        """Refuse a kind of cluster that cannot run the stage. Raises ConfigError."""

    def ranks(self, place: Place) -> int:
        """How much of the place where it runs the stage takes at once."""
        layouts = [getattr(self, name, None) for name in ("layout", "teacher_layout")]
        return max((layout.world_size for layout in layouts if layout), default=1)

    def run(self, ctx: StageContext, taken: Taken) -> Artifact:
        """Make the stage's artifact and publish it. Raises CupolaError."""
        raise NotImplementedError

    def shape(self, parent: ModelConfig | None) -> ModelConfig | None:
        """Shape of the resulting model, if the recipe determines it.

        Args:
            parent: the parent's shape; None if it comes from an artifact or there is no parent.

        Raises:
            ConfigError: the parent cannot be turned into the requested shape.
        """
        return parent

    def check(self, recipe: Stages) -> None:
        """Check everything that can be checked before the run starts. Raises CupolaError."""

    def check_model(self, model: ModelConfig, layout: LayoutConfig) -> None:
        """The same for a model that the stage trains, makes or evaluates. Raises CupolaError."""
        validate_layout(model, layout)

    def check_place(self, place: Place, model: ModelConfig | None, layout: LayoutConfig) -> None:
        """The same for the place where the stage runs. Raises CupolaError.

        Args:
            model: None if it comes from an artifact.
        """

    def content(self, stages: "Mapping[str, Strict]", seeds: Mapping[str, int]) -> dict[str, Any]:
        """What the result depends on besides the recipe, such as the files that the stage reads. Plain JSON.

        Args:
            stages: all stages of the recipe.
            seeds: the seed of each.
        """
        return {}

    @staticmethod
    def summary(metrics: Mapping[str, float]) -> str:
        """The most important metrics, on one line."""
        return ", ".join(f"{name} {number(value)}" for name, value in list(metrics.items())[:4])


def settings(stage: Strict, of: type[Strict]) -> dict[str, Any]:
    """A stage's values for the settings class that it shares with a job."""
    return {name: getattr(stage, name) for name in of.model_fields}
