"""A stage is one file: it is discovered, runs from its own settings, and can come from a plugin without other changes."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from cupola_flows.stages.base import Input, Stage
from cupola_flows.stages.table import kinds
from cupola_flows.stages.training import TrainStage
from cupola_trainer import config

TOY = '''
"""A stage of a plugin: counts the words of a text."""

from typing import ClassVar, Literal

from cupola_flows.execution.context import StageContext
from cupola_flows.stages.base import Stage, Taken
from cupola_platform.artifacts import Artifact


class CountStage(Stage):
    """Counts words."""

    gives: ClassVar[str] = "count"
    kind: Literal["count"] = "count"
    text: str
    """What to count."""

    def run(self, ctx: StageContext, taken: Taken) -> Artifact:
        folder = ctx.empty("count")
        (folder / "count.txt").write_text(str(len(self.text.split())))
        return ctx.publish(folder, parents=taken.all(), metrics={"words": float(len(self.text.split()))})

    @staticmethod
    def summary(metrics: dict[str, float]) -> str:
        return f"{metrics['words']:.0f} words counted"
'''
RECIPE = "name: counting\nstages:\n  count:\n    text: {text}\n"


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """A folder on Python's path with the toy module and the metadata that `pip install` would write."""
    installed = tmp_path / "installed"
    about = installed / "toy-1.0.dist-info"
    about.mkdir(parents=True)
    (installed / "toy_count.py").write_text(TOY)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[cupola.stages]\ncount = toy_count\n")
    return installed


def cupola(plugin: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(plugin), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "CUPOLA_HOME": str(plugin.parent / "home")}
    command = [sys.executable, "-c", "from cupola_flows.cli import main; main()", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_plugins_stage_is_run_reused_and_reported_like_any_other(plugin: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "counting.yaml"
    recipe.write_text(RECIPE.format(text="one two three"))
    ran = cupola(plugin, "run", "--no-prefect", str(recipe))
    assert ran.returncode == 0, ran.stderr
    assert "3 words counted" in ran.stdout
    assert "Nothing to do" in cupola(plugin, "run", "--no-prefect", str(recipe)).stdout
    recipe.write_text("name: counting\nstages:\n  cuont:\n    text: one\n")
    refused = cupola(plugin, "run", "--no-prefect", str(recipe))
    assert refused.returncode == 2
    assert "'cuont' is not a kind of stage. Did you mean 'count'?" in refused.stderr


def test_each_kind_is_defined_in_the_file_of_its_name() -> None:
    assert {kind: stage.__module__.rpartition(".")[2] for kind, stage in kinds().items()} == {
        kind: kind for kind in kinds()
    }


OTHERWISE = {
    "model": "a stage may name a published model",
    "positions": "a job without them changes none",
    "rewards": "a job's also include the reward model's folder",
}
"""Fields with the same name but another meaning in a stage than in a job, and why."""


def defines(model: type[BaseModel], field: str) -> type:
    return next(of for of in model.__mro__ if field in inspect.get_annotations(of))


def jobs_of(stage: type[Stage]) -> list[type[BaseModel]]:
    """The job and data classes that a stage's file creates."""
    module = sys.modules[stage.__module__]
    made = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__.startswith("cupola_trainer")
    ]
    found = [of for of in made if issubclass(of, BaseModel) and {"kind", "objective"} & set(of.model_fields)]
    found = [of for of in found if of is not config.TeachJob]  # its steps and temperature belong to a later job
    return [*found, *([config.TrainJob] if issubclass(stage, TrainStage) else [])]


@pytest.mark.parametrize("kind", kinds())
def test_no_setting_is_defined_twice(kind: str) -> None:
    stage = kinds()[kind]
    for job in jobs_of(stage):
        for field in set(stage.model_fields) & set(job.model_fields) - {"kind", "seed", *OTHERWISE}:
            if any(isinstance(mark, Input) for mark in stage.model_fields[field].metadata):
                continue  # the stage names another stage, the job a folder
            ours, theirs = defines(stage, field), defines(job, field)
            if ours is not theirs:  # only another default justifies redefining a setting
                assert issubclass(ours, theirs), f"{kind}.{field} is in {ours.__name__} and in {theirs.__name__}"
                assert repr(stage.model_fields[field]) != repr(theirs.__dict__["__pydantic_fields__"][field])
