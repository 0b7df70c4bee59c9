"""All settings of a recipe, with their descriptions, as an editable table."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from cupola_flows.recipe import core_yaml
from cupola_flows.recipe.loading import Recipe

COLUMNS = ["setting", "value", "meaning"]
UNLISTED = (".kind", ".steps")
"""Settings that have their own field in the form, or cannot be changed."""


def recipe_settings(recipe: Recipe) -> pd.DataFrame:
    """One row per setting of every stage, except kind and steps: setting (`pretrain.optimizer.lr`), value (as YAML),
    meaning."""
    rows = [row for stage, settings in recipe.stages.items() for row in _settings(settings, f"{stage}.")]
    return pd.DataFrame(
        [row for row in rows if row[0].count(".") > 1 or not row[0].endswith(UNLISTED)], columns=COLUMNS
    )


def overrides(before: pd.DataFrame, after: pd.DataFrame) -> list[str]:
    """`stages.SETTING=VALUE` for every value that was changed."""
    values = after["value"].fillna("").astype(str).str.strip()
    changed = values != before["value"]
    return [f"stages.{name}={value}" for name, value in zip(after["setting"][changed], values[changed], strict=True)]


def _settings(holder: Any, path: str) -> Iterator[tuple[str, str, str]]:
    """The fields of a model or pydantic dataclass, recursively."""
    for name, field in type(holder).__pydantic_fields__.items():
        value = getattr(holder, name)
        if hasattr(type(value), "__pydantic_fields__"):
            yield from _settings(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", _as_yaml(value), " ".join((field.description or "").split())


def _as_yaml(value: Any) -> str:
    if value is None or isinstance(value, bool | int | float | str):
        return core_yaml.dump(value)
    plain = (
        {key: _plain(each) for key, each in value.items()} if isinstance(value, dict) else [_plain(v) for v in value]
    )
    return core_yaml.dump(plain, flow=True)


def _plain(value: Any) -> Any:
    if fields := getattr(type(value), "__pydantic_fields__", None):
        return {name: _plain(getattr(value, name)) for name in fields}
    return list(value) if isinstance(value, tuple) else value
