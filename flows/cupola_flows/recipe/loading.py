"""Loads recipes from YAML and `--set` overrides, with one-line errors."""

from collections.abc import Sequence
from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cupola_flows.recipe import core_yaml
from cupola_flows.recipe.messages import one_line
from cupola_flows.recipe.schema import Recipe
from cupola_platform.errors import ConfigError, NotFoundError
from cupola_platform.nearest import did_you_mean

__all__ = ["Recipe", "find_recipe", "load_recipe", "parse_recipe", "shipped"]

LARGEST = 1_000_000
"""Maximum bytes of a recipe file."""
DEEPEST = 32
"""Maximum levels of nesting."""


def shipped() -> dict[str, Path]:
    """Files of the shipped recipes by name."""
    folder = Path(str(files("cupola_flows.recipe") / "shipped"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load a shipped recipe or a file, and apply overrides such as `stages.pretrain.steps=200`.

    Raises:
        NotFoundError: there is no such recipe.
        ConfigError: the file or an override is invalid; one line.
    """
    path = find_recipe(name_or_path)
    return parse_recipe(_read(path), overrides, where=str(name_or_path))


def find_recipe(name_or_path: str | Path) -> Path:
    """The file of a recipe. Raises NotFoundError with the closest shipped name."""
    recipes = shipped()
    if str(name_or_path) in recipes:
        return recipes[str(name_or_path)]
    path = Path(name_or_path).expanduser()
    if not path.is_file():
        hint = did_you_mean(str(name_or_path), recipes)
        raise NotFoundError(f"{name_or_path}: no recipe by that name, and no such file.{hint}")
    return path


def parse_recipe(text: str, overrides: Sequence[str] = (), *, where: str = "recipe") -> Recipe:
    """Parse a recipe from YAML text. Raises ConfigError with a one-line message."""
    data = read_yaml(text, where)
    for override in overrides:
        data = apply_override(data, override)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{where}: {one_line(error, Recipe)}") from None
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def read_yaml(text: str, where: str) -> dict[str, Any]:
    """Parse a mapping from plain YAML 1.2, without tags, anchors or duplicate keys. Raises ConfigError."""
    if len(text.encode()) > LARGEST:
        raise ConfigError(f"{where}: {len(text.encode()):,} bytes; the limit for a recipe is {LARGEST:,}.")
    try:
        _refuse_tricks(text, where)
        data = core_yaml.load(text)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(f"{where}: {line}not valid YAML: {error.problem}.") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{where}: not valid YAML: {str(error).splitlines()[0]}.") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: a recipe is a mapping with `name` and `stages`; this is {_kind(data)}.")
    return data


def apply_override(data: dict[str, Any], override: str) -> dict[str, Any]:
    """A copy of `data` with one `dotted.key=value` override applied. Raises ConfigError."""
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override}: give KEY=VALUE, such as stages.pretrain.steps=200.")
    new = _value(value, f"--set {key}")
    steps = key.strip().split(".")
    if steps[0] not in Recipe.model_fields:
        raise ConfigError(
            f"--set {key}: there is no {steps[0]!r} in a recipe.{did_you_mean(steps[0], Recipe.model_fields)}"
        )
    stages = data.get("stages")
    if steps[0] == "stages" and len(steps) > 1 and isinstance(stages, dict) and steps[1] not in stages:
        raise ConfigError(f"--set {key}: there is no stage {steps[1]!r}.{did_you_mean(steps[1], stages)}")
    changed = deepcopy(data)
    at: Any = changed
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        where: Any = step
        if isinstance(at, list):
            if not step.isdecimal() or int(step) >= len(at):
                raise ConfigError(f"--set {key}: {step!r} is not an index of a list of {len(at)}. Indices start at 0.")
            where = int(step)
        elif not isinstance(at, dict):
            raise ConfigError(f"--set {key}: cannot set a key inside {_kind(at)}.")
        if following is None:
            at[where] = new
        elif isinstance(at, dict):
            if at.get(where) is None:
                at[where] = {}
            at = at[where]
        else:
            at = at[where]
    return changed


def _read(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise ConfigError(f"{path}: {size:,} bytes; the limit for a recipe is {LARGEST:,}.")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}).") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from None


def _value(text: str, where: str) -> Any:
    """The value of an override: YAML if it starts like a list, a mapping or a quoted string, else a plain value."""
    begins = text.strip()[:1]
    try:
        return read_yaml(f"value: {text}", where)["value"] if begins in {*"[{'\""} else core_yaml.plain(text)
    except ConfigError as error:
        raise ConfigError(f"{error} Quote a text that starts with {begins}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{where}: {str(error).splitlines()[0]}.") from None


def _refuse_tricks(text: str, where: str) -> None:
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if tag := getattr(event, "tag", None):
            raise ConfigError(f"{where}: line {line}: YAML tags ({tag}) are refused. Write the plain value.")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ConfigError(f"{where}: line {line}: YAML anchors and aliases are refused. Write the value out.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ConfigError(f"{where}: line {line}: nested deeper than {DEEPEST} levels.")


def _kind(value: object) -> str:
    return {dict: "a mapping", list: "a list", type(None): "empty"}.get(type(value), f"{value!r}")
