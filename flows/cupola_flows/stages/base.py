"""What every stage is: settings, inputs, one artifact."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from pydantic import Field

from cupola_flows.execution.context import StageContext
from cupola_flows.terminal.text import number
from cupola_platform.artifacts import Artifact
from cupola_platform.strict import Strict
from cupola_trainer.config import LayoutConfig, ModelConfig
from cupola_trainer.config.layout_rules import validate_layout

FINGERPRINTED = False  # says what a stage is, not what one does

ARTIFACT = "artifact:"
"""Before the id or the alias of what the registry has already, where a recipe names an input."""


class Stages(Protocol):
    """What guesses look at: a recipe's stages in its order, and what each of them takes."""

    @property
    def stages(self) -> "Mapping[str, Stage]": ...

    def references(self, name: str, field: str) -> tuple[str, ...]:
        """The stages, or `artifact:ID`, that a stage takes by a field; guesses included."""


Guess = Callable[[Stages, str, str], tuple[str, ...]]
"""From the stages, a stage's name and the kind that it needs to the stages to take it from."""


def nearest(recipe: Stages, name: str, kind: str) -> tuple[str, ...]:
    """The nearest earlier stage that gives the kind."""
    return _earlier(recipe, name, kind)[-1:]


def every_trained(recipe: Stages, name: str, kind: str) -> tuple[str, ...]:
    """Every earlier stage that gives the kind, but for those whose checkpoints are to be trained first."""
    return tuple(stage for stage in _earlier(recipe, name, kind) if recipe.stages[stage].ready)


def _earlier(recipe: Stages, name: str, kind: str) -> tuple[str, ...]:
    earlier = list(recipe.stages)[: list(recipe.stages).index(name)]
    return tuple(stage for stage in earlier if recipe.stages[stage].gives == kind)


@dataclass(frozen=True)
class Input:
    """What a field of a stage takes when it names another stage, or `artifact:ID`."""

    kind: str
    """Of the artifact."""
    guess: Guess | None = nearest
    """What is taken where a recipe leaves the field out; none to take nothing."""
    optional: bool = False
    """Whether the stage can do without it. One that is never guessed can."""

    @property
    def needed(self) -> bool:
        return self.guess is not None and not self.optional


@dataclass(frozen=True)
class Taken:
    """The artifacts that a stage takes."""

    fields: Mapping[str, Mapping[str, Artifact]]
    """Field to artifacts, by the references that the recipe has for them."""

    def one(self, field: str) -> Artifact:
        """The artifact of a field that is always there."""
        return next(iter(self.fields[field].values()))

    def maybe(self, field: str) -> Artifact | None:
        """The artifact of a field, where there is one."""
        return next(iter(self.fields[field].values()), None)

    def named(self, field: str) -> Mapping[str, Artifact]:
        """All artifacts of a field, by name."""
        return self.fields[field]

    def all(self, *fields: str) -> list[Artifact]:
        """All artifacts of these fields, in this order; of every field where none is named."""
        return [artifact for field in fields or self.fields for artifact in self.fields[field].values()]


class Stage(Strict):
    """One typed step of a recipe: takes artifacts, gives one artifact.

    A subclass adds `kind: Literal[NAME] = NAME`, its settings, and its inputs: fields like `parent: Annotated[str |
    None, Input("checkpoint")] = None`.
    """

    kind: str
    """What the stage is; a stage whose name is a kind needs none."""
    gives: ClassVar[str]
    """The artifact's kind."""
    renders: ClassVar[bool] = False
    """Whether it puts conversations through a chat template,
    so that the recipe's `template_date` decides its tokens."""
    ready: ClassVar[bool] = True
    """Whether its checkpoint is worth measuring before it is trained further."""

    seed: int | None = Field(default=None, ge=0, lt=2**31)
    """Seed of this stage; none for the recipe's."""

    @classmethod
    def inputs(cls) -> dict[str, Input]:
        """Field to what it takes."""
        return {
            name: mark for name, field in cls.model_fields.items() for mark in field.metadata if isinstance(mark, Input)
        }

    @property
    def code(self) -> tuple[str, ...]:
        """The modules whose code decides what this stage gives, with all that they import."""
        return (type(self).__module__,)

    def run(self, ctx: StageContext, taken: Taken) -> Artifact:
        """Make what the stage gives, and publish it. Raises CupolaError."""
        raise NotImplementedError

    def shape(self, parent: ModelConfig | None) -> ModelConfig | None:
        """The shape of the model that it gives, as far as the recipe says it.

        Args:
            parent: its parent's; none where that comes from an artifact, or where there is no parent.

        Raises:
            ConfigError: the parent cannot become what the stage asks for.
        """
        return parent

    def check(self, recipe: Stages) -> None:
        """Refuse what can be known to be wrong before anything starts. Raises CupolaError."""

    def check_model(self, model: ModelConfig, layout: LayoutConfig) -> None:
        """The same, about a model that the stage trains, makes or measures. Raises CupolaError."""
        validate_layout(model, layout)

    def content(self, stages: "Mapping[str, Strict]", seeds: Mapping[str, int]) -> dict[str, Any]:
        """What decides the result and lies outside the recipe, such as the files that the stage reads; plain JSON.

        Args:
            stages: all of the recipe.
            seeds: that each of them has.
        """
        return {}

    @staticmethod
    def summary(metrics: Mapping[str, float]) -> str:
        """The numbers that matter most, in a line."""
        return ", ".join(f"{name} {number(value)}" for name, value in list(metrics.items())[:4])


def settings(stage: Strict, of: type[Strict]) -> dict[str, Any]:
    """A stage's values for the settings that it shares with a job."""
    return {name: getattr(stage, name) for name in of.model_fields}
