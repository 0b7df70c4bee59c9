"""Fingerprint of a stage: its settings, the content of its parents and the code that it runs, but no paths."""

from collections.abc import Mapping, Sequence
from typing import Any

from cupola_flows.execution.code_version import code_version
from cupola_flows.recipe.schema import Recipe
from cupola_platform.artifacts import fingerprint as platform_fingerprint

WITHOUT_EFFECT = ("layout", "layouts", "run_on", "teacher_layout", "checkpoint", "log_every", "evaluate_every")
"""Settings that affect speed, safety or logging, but not the result. An interrupted stage resumes with other values,
for instance on fewer machines, and a finished one is reused."""
NESTED_WITHOUT_EFFECT = (
    "executor",
    "hang_seconds",
    "max_restarts",
    "concurrency",
    "timeout",
    "retries",
    "key_variable",
)
"""The same, at any depth of a stage's settings."""


def fingerprint(recipe: Recipe, name: str, parents: Mapping[str, Sequence[str]]) -> str:
    """BLAKE3, in hex, of everything that a stage's result depends on.

    Args:
        parents: input field to the digests of its artifacts.
    """
    stage = recipe.stages[name]
    inputs = {field for field in stage.inputs() if field in type(stage).model_fields}
    config = {
        "stage": _with_effect(stage.model_dump(mode="json", exclude={"seed", *inputs, *WITHOUT_EFFECT})),
        "seed": recipe.stage_seed(name),
        "fields": {field: len(digests) for field, digests in parents.items()},
        "names": list(recipe.inputs(name).get("checkpoints", ())),
        **stage.content(recipe.stages, recipe.seeds()),
    }
    if stage.renders and recipe.template_date:
        config["template_date"] = recipe.template_date.isoformat()
    ordered = [digest for digests in parents.values() for digest in digests]
    return platform_fingerprint(config, ordered, code_version(*stage.code))


def _with_effect(config: Any) -> Any:
    if isinstance(config, dict):
        return {key: _with_effect(value) for key, value in config.items() if key not in NESTED_WITHOUT_EFFECT}
    return [_with_effect(value) for value in config] if isinstance(config, list) else config
