"""A recipe: a model's whole life as named, typed stages that take each other's artifacts."""

import re
from collections.abc import Iterable
from datetime import date
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cupola_flows.nearest import did_you_mean
from cupola_flows.stages import KINDS, NEVER_GUESSED, OPTIONAL, AnyStage

ARTIFACT = "artifact:"
CRON = re.compile(r"^(@(yearly|annually|monthly|weekly|daily|hourly))$|^[\dA-Za-z*/,\-#?]+( [\dA-Za-z*/,\-#?]+){4}$")


UNTRAINED = ("upcycle", "prune")
"""Stages whose checkpoints are not worth measuring before they are trained further."""


class Recipe(BaseModel):
    """A model's whole life, from raw text to a promoted checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")
    """What the runs and artifacts are filed under."""
    description: str = ""
    """What it is for, in a sentence."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of every stage that names none."""
    template_date: date | None = None
    """The day that chat templates with today's date are given, such as 2026-11-30: tokens are then the same every day. None
    refuses such templates, unless a checkpoint was trained with a date."""
    schedule: str | None = None
    """When a deployment starts by itself: five cron fields, in UTC."""
    stages: dict[str, AnyStage] = Field(min_length=1)
    """Stage name to stage. A stage whose name is a kind needs no `kind`."""

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
                raise ValueError(f"{name!r} is not a stage name: lower-case letters, digits and underscores")
        return {
            name: stage
            if not isinstance(stage, dict) or "kind" in stage or name not in KINDS
            else stage | {"kind": name}
            for name, stage in stages.items()
        }

    @model_validator(mode="after")
    def _graph(self) -> "Recipe":
        self.order()
        return self

    def inputs(self, name: str) -> dict[str, tuple[str, ...]]:
        """Field to the references that it holds, guesses included: a stage's name, or `artifact:ID`."""
        stage = self.stages[name]
        return {field: self._references(name, stage, field) for field in stage.takes}

    def order(self) -> tuple[str, ...]:
        """Stage names, parents first, otherwise as written.

        Raises:
            ValueError: stages that wait for each other.
        """
        parents = {name: self.parents(name) for name in self.stages}
        done: list[str] = []
        while len(done) < len(parents):
            ready = next((name for name in parents if name not in done and parents[name] <= set(done)), None)
            if ready is None:
                raise ValueError(f"stages wait for each other: {' -> '.join(_cycle(parents, done))}")
            done.append(ready)
        return tuple(done)

    def parents(self, name: str) -> set[str]:
        """The stages that `name` takes artifacts of."""
        return {ref for refs in self.inputs(name).values() for ref in refs if not ref.startswith(ARTIFACT)}

    def stage_seed(self, name: str) -> int:
        """The stage's own seed, or the recipe's."""
        own = self.stages[name].seed
        return self.seed if own is None else own

    def _references(self, name: str, stage: AnyStage, field: str) -> tuple[str, ...]:
        given: str | tuple[str, ...] | None = getattr(stage, field)
        needs = stage.takes[field]
        where = f"stages.{name}.{field}"
        if given:
            references = (given,) if isinstance(given, str) else given
            for reference in references:
                self._check(reference, needs, where)
            return references
        earlier = list(self.stages)[: list(self.stages).index(name)]
        if field == "checkpoints" and stage.kind == "promote":
            found = self._measured(name)
        elif field == "checkpoints":
            found = tuple(e for e in earlier if self.stages[e].gives == needs and self.stages[e].kind not in UNTRAINED)
        elif (stage.kind, field) in NEVER_GUESSED:
            found = ()
        else:
            wanted = "pretrain" if field == "baseline" else None
            found = tuple(
                e for e in earlier if self.stages[e].gives == needs and wanted in (None, self.stages[e].kind)
            )[-1:]
        if not found and (stage.kind, field) not in OPTIONAL:
            raise ValueError(
                f"{where}: no earlier stage gives {needs}. Name one, or artifact:ID for what exists already."
            )
        return found

    def _measured(self, name: str) -> tuple[str, ...]:
        """What the evaluation of a promotion measures, but for the baseline."""
        stage = self.stages[name]
        evaluation = next(iter(self._references(name, stage, "evaluation")))
        if evaluation.startswith(ARTIFACT):
            return ()
        baseline = self._references(name, stage, "baseline")
        measured = self._references(evaluation, self.stages[evaluation], "checkpoints")
        return tuple(each for each in measured if each not in baseline)

    def _check(self, reference: str, needs: str, where: str) -> None:
        if reference.startswith(ARTIFACT):
            if not reference.removeprefix(ARTIFACT):
                raise ValueError(f"{where}: artifact: needs an id or an alias, as artifact:champion")
            return
        if reference not in self.stages:
            fitting = [n for n, s in self.stages.items() if needs == s.gives]
            raise ValueError(f"{where}: there is no stage {reference!r}.{did_you_mean(reference, fitting)}")
        gives = self.stages[reference].gives
        if gives != needs:
            raise ValueError(f"{where}: stage {reference!r} gives {gives}, and {needs} is needed")


def select(recipe: Recipe, only: Iterable[str]) -> tuple[str, ...]:
    """The stages to run, in order: all of them, or those named in `only`.

    Raises:
        ValueError: a name that is no stage.
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
