"""One word for one thing: what settings, scorers and variables are called, and what they are not."""

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
from pydantic import create_model

from cupola_flows.recipe.schema import Recipe
from cupola_flows.stages.data.preferences import PreferencesStage
from cupola_flows.stages.data.synthesis import SynthesisSettings
from cupola_platform.strict import Strict
from cupola_trainer.config import JOB, Scorer
from cupola_trainer.config.scorers import (
    ExecutionReward,
    HttpReward,
    PatternReward,
    PythonReward,
    RewardModelReward,
    TaskReward,
)

ROOT = Path(__file__).parents[2]
PACKAGES = ("platform", "trainer", "flows", "dashboards")
INSTEAD = {
    "anchor_rate": "ema_rate",
    "answers": "responses",
    "cut": "truncated",
    "filter": "scorer",
    "front": "interpolation_shares",
    "group_size": "samples_per_prompt",
    "heldout_queries": "heldout_prompts",
    "initial": "parent",
    "num_samples": "samples_per_prompt",
    "parallel": "layout",
    "queries": "prompts",
    "questions": "prompts",
    "score_by": "scorer",
    "value_initial": "value_model",
}
"""Settings that named a thing for which there was another word, and that word."""
SAY_NOTHING = {"found", "told"}
REWARDS = (TaskReward, ExecutionReward, RewardModelReward, PythonReward, HttpReward, PatternReward)


def settings_of(schema: Mapping[str, Any]) -> dict[str, set[str]]:
    """The fields of every settings class in a JSON schema, by the class's name."""
    classes = {"": schema, **schema.get("$defs", {})}
    return {name: set(of["properties"]) for name, of in classes.items() if "properties" in of}


def misnamed(schema: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}.{field}" for name, fields in settings_of(schema).items() for field in sorted(fields & set(INSTEAD))
    ]


def values(model: type, field: str) -> set[str]:
    """What a field of a model or a pydantic dataclass may be."""
    fields = getattr(model, "__pydantic_fields__")  # noqa: B009 - a dataclass has them too, unknown to mypy
    return set(get_args(fields[field].annotation))


def beside_the_vocabulary(choices: Iterable[set[str]]) -> set[str]:
    return set().union(*choices) - set(get_args(Scorer)) - {"none"}


def bound(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Variables, parameters and functions that a module names, each with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno


def idle_names(source: str) -> list[int]:
    """Lines that bind a name that says nothing."""
    return [line for name, line in bound(ast.parse(source)) if name in SAY_NOTHING]


def sources() -> dict[str, str]:
    paths = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}


@pytest.mark.parametrize("schema", [Recipe.model_json_schema(), JOB.json_schema()], ids=["recipe", "jobs"])
def test_a_setting_has_the_one_word_for_what_it_sets(schema: dict[str, Any]) -> None:
    assert len(settings_of(schema)) > 20
    assert misnamed(schema) == []


@pytest.mark.parametrize("word", INSTEAD)
def test_a_setting_of_another_word_is_caught(word: str) -> None:
    nested = create_model("NestedSettings", __base__=Strict, **{word: (int, 1)})  # type: ignore[call-overload]
    planted = create_model("PlantedJob", __base__=Strict, nested=(nested, ...))
    assert misnamed(planted.model_json_schema()) == [f"NestedSettings.{word}"]


def test_preferences_synthesis_and_rewards_score_by_one_vocabulary() -> None:
    choices = [values(PreferencesStage, "scorer"), values(SynthesisSettings, "scorer")]
    choices += [values(reward, "scorer") for reward in REWARDS]
    assert beside_the_vocabulary(choices) == set()
    assert set().union(*choices) >= set(get_args(Scorer)), "a scorer that nothing uses"
    assert beside_the_vocabulary([*choices, set(get_args(Literal["task", "code"]))]) == {"code"}


def test_one_class_is_called_reward_model() -> None:
    names = [
        node.name for text in sources().values() for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)
    ]
    assert names.count("RewardModel") == 1
    assert names.count("ModelReward") == 0


def test_no_variable_has_a_name_that_says_nothing() -> None:
    assert {name: lines for name, text in sources().items() if (lines := idle_names(text))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "found = 1",
        "told: int = 1",
        "def f(told): ...",
        "def told(): ...",
        "[found for found in ()]",
        "(found := 1)",
        "for a, found in (): ...",
    ],
)
def test_such_a_variable_is_caught(source: str) -> None:
    assert idle_names(source) == [1]
