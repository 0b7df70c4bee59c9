"""A recipe: a model's lifecycle as named, typed stages that take each other's artifacts."""

import functools
import operator
import re
from collections.abc import Iterable
from datetime import date
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, field_validator, model_validator
from pydantic_core import CoreSchema

from cupola_flows.stages.base import ARTIFACT, Input, Stage
from cupola_flows.stages.table import kinds
from cupola_platform.nearest import did_you_mean

CRON = re.compile(r"^(@(yearly|annually|monthly|weekly|daily|hourly))$|^[\dA-Za-z*/,\-#?]+( [\dA-Za-z*/,\-#?]+){4}$")


class _AnyKind:
    """A stage of any kind, discriminated by `kind`. Resolved when the first recipe is read, since plugins add kinds."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        any_kind = functools.reduce(operator.or_, kinds().values())
        return handler.generate_schema(Annotated[any_kind, Field(discriminator="kind")])


AnyStage = Annotated[Stage, _AnyKind]


class Recipe(BaseModel):
    """A model's lifecycle, from raw text to a promoted checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")
    """Name of the recipe, recorded with its runs and artifacts."""
    description: str = ""
    """Purpose of the recipe, in one sentence."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of every stage that sets none."""
    template_date: date | None = None
    """Date for chat templates that use today's date, such as 2026-11-30, so that tokens are the same every day. None
    refuses such templates, unless a checkpoint was trained with a date."""
    schedule: str | None = None
    """Schedule of deployments: five cron fields, in UTC."""
    run_on: str | None = None
    """Cluster of `cupola.toml` for the jobs of every stage that names none; None for this machine."""
    stages: dict[str, AnyStage] = Field(min_length=1)
    """Stages by name. A stage whose name is a kind needs no `kind`."""

    @field_validator("schedule")
    @classmethod
    def _cron(cls, value: str | None) -> str | None:
        if value is not None and not CRON.match(value):
            raise ValueError(f"{value!r} is not a cron expression. Give five fields, such as '0 3 * * *'.")
        return value

    @field_validator("stages", mode="before")
    @classmethod
    def _names_are_kinds(cls, stages: Any) -> Any:
        if not isinstance(stages, dict):
            return stages
        for name in stages:
            if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name):
                raise ValueError(f"{name!r} is not a valid stage name. Use lower-case letters, digits and underscores")
        return {
            name: stage
            if not isinstance(stage, dict) or "kind" in stage or name not in kinds()
            else stage | {"kind": name}
            for name, stage in stages.items()
        }

    @model_validator(mode="after")
    def _graph(self) -> "Recipe":
        self.order()
        return self

    def inputs(self, name: str) -> dict[str, tuple[str, ...]]:
        """References of a stage's inputs by field, guesses included: stage names or `artifact:ID`."""
        return {field: self.references(name, field) for field in self.stages[name].inputs()}

    def references(self, name: str, field: str) -> tuple[str, ...]:
        """The references of a stage's input field, given or guessed.

        Raises:
            ValueError: there is no such stage, it gives another kind, or no stage gives the needed kind.
        """
        stage = self.stages[name]
        wanted: Input = stage.inputs()[field]
        where = f"stages.{name}.{field}"
        if given := getattr(stage, field):
            references: tuple[str, ...] = (given,) if isinstance(given, str) else given
            for reference in references:
                self._check(reference, wanted.kind, where)
            return references
        guessed = wanted.guess(self, name, wanted.kind) if wanted.guess else ()
        if not guessed and wanted.needed:
            raise ValueError(
                f"{where}: no earlier stage gives {wanted.kind}. Name a stage, or artifact:ID for an existing artifact."
            )
        return guessed

    def order(self) -> tuple[str, ...]:
        """Stage names with parents first, otherwise in the recipe's order.

        Raises:
            ValueError: the stages form a cycle.
        """
        parents = {name: self.parents(name) for name in self.stages}
        done: list[str] = []
        while len(done) < len(parents):
            ready = next((name for name in parents if name not in done and parents[name] <= set(done)), None)
            if ready is None:
                raise ValueError(f"the stages form a cycle: {' -> '.join(_cycle(parents, done))}")
            done.append(ready)
        return tuple(done)

    def parents(self, name: str) -> set[str]:
        """The stages whose artifacts `name` takes."""
        return {ref for refs in self.inputs(name).values() for ref in refs if not ref.startswith(ARTIFACT)}

    def stage_seed(self, name: str) -> int:
        """The stage's seed, or else the recipe's."""
        own = self.stages[name].seed
        return self.seed if own is None else own

    def seeds(self) -> dict[str, int]:
        """The seed of every stage."""
        return {name: self.stage_seed(name) for name in self.stages}

    def _check(self, reference: str, needs: str, where: str) -> None:
        if reference.startswith(ARTIFACT):
            if not reference.removeprefix(ARTIFACT):
                raise ValueError(f"{where}: artifact: needs an id or an alias, such as artifact:champion")
            return
        if reference not in self.stages:
            fitting = [n for n, s in self.stages.items() if needs == s.gives]
            raise ValueError(f"{where}: there is no stage {reference!r}.{did_you_mean(reference, fitting)}")
        gives = self.stages[reference].gives
        if gives != needs:
            raise ValueError(f"{where}: stage {reference!r} gives {gives}, but {needs} is needed")


def on_cluster(recipe: Recipe, cluster: str) -> Recipe:
    """The recipe with all jobs on one cluster, whatever its stages say."""
    stages = {name: stage.model_copy(update={"run_on": None}) for name, stage in recipe.stages.items()}
    return recipe.model_copy(update={"run_on": cluster, "stages": stages})


def select(recipe: Recipe, only: Iterable[str]) -> tuple[str, ...]:
    """The stages to run, in order: those named in `only`, or all.

    Raises:
        ValueError: a name is not a stage.
    """
    wanted = list(only)
    for name in wanted:
        if name not in recipe.stages:
            raise ValueError(f"--only {name}: there is no such stage.{did_you_mean(name, recipe.stages)}")
    return tuple(name for name in recipe.order() if not wanted or name in wanted)


def _cycle(parents: dict[str, set[str]], done: list[str]) -> list[str]:
    name = next(name for name in parents if name not in done)
    walked: list[str] = []
    while name not in walked:
        walked.append(name)
        name = min(parents[name] - set(done))
    return [*walked[walked.index(name) :], name]
