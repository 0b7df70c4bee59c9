"""Pydantic's errors as one line: the path, the given value, the rule, and the closest valid key."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cupola_platform.nearest import did_you_mean
from cupola_platform.security.urls import shown

UNKNOWN_KEY = {"extra_forbidden", "unexpected_keyword_argument"}


def one_line(error: ValidationError, model: type[BaseModel]) -> str:
    """The most informative error, and the number of others.

    A misspelt key comes before the `missing` error that it causes.
    """
    errors = sorted(error.errors(include_url=False), key=lambda e: e["type"] not in UNKNOWN_KEY)
    schema = model.model_json_schema()
    line = _describe(errors[0], schema)
    others = len(errors) - 1
    return line if not others else f"{line} (and {others} more {'error' if others == 1 else 'errors'})"


def _describe(error: ErrorDetails, schema: dict[str, Any]) -> str:
    location, parent = _walk(schema, error["loc"])
    where = ".".join(location)
    given = error["input"]
    context = error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            return f"{where}: there is no such key.{did_you_mean(location[-1], _properties(parent, schema))}"
        case "missing":
            return (
                f"{where}: missing. {_properties(parent, schema).get(location[-1], {}).get('description', '')}".rstrip()
            )
        case "union_tag_not_found":
            kinds = str(context.get("discriminator", "'kind'")).strip("'")
            what = _choices(context, location[-1]) if kinds == "kind" else f"got {_shown(given)}."
            return f"{where}: {kinds} is missing: {what}"
        case "union_tag_invalid":
            expected = [tag.strip("' ") for tag in str(context["expected_tags"]).split(",")]
            key = str(context["discriminator"]).strip("'")
            return f"{where}.{key}: {context['tag']!r} is unknown.{did_you_mean(str(context['tag']), expected)}"
        case "value_error":
            text = str(context["error"])
            return f"{where}: {text}" if where and not text.startswith(("stages.", where)) else text
        case "literal_error":
            expected = [tag.strip("' ") for tag in str(context["expected"]).replace(" or ", ",").split(",")]
            return f"{where}: {given!r} is unknown.{did_you_mean(str(given), expected)}"
        case _:
            return f"{where}: {_shown(given)}: {error['msg'][0].lower()}{error['msg'][1:]}."


def _choices(context: dict[str, Any], name: str) -> str:
    from cupola_flows.stages.table import kinds

    return f"{name!r} is not a kind of stage.{did_you_mean(name, kinds())}"


def _shown(value: object) -> str:
    text = shown(repr(value))  # before truncation, which could split a password
    return text if len(text) <= 80 else f"{text[:77]}..."


def _walk(schema: dict[str, Any], location: Sequence[int | str]) -> tuple[list[str], list[dict[str, Any]]]:
    """The path as in the recipe, without the union members that pydantic adds, and the schemas of its parent."""
    path: list[str] = []
    parents: list[dict[str, Any]] = []
    here = _expand(schema, schema)
    for step in location:
        tagged = [
            s["discriminator"]["mapping"][step] for s in here if step in s.get("discriminator", {}).get("mapping", ())
        ]
        if tagged:
            here = _expand({"$ref": tagged[0]}, schema)
            continue
        path.append(str(step))
        parents = here
        here = [entered for s in here for entered in _enter(s, step, schema)]
    return path, parents


def _enter(schema: dict[str, Any], step: int | str, root: dict[str, Any]) -> list[dict[str, Any]]:
    if isinstance(step, int):
        return _expand(schema["items"], root) if isinstance(schema.get("items"), dict) else []
    if step in schema.get("properties", {}):
        return _expand(schema["properties"][step], root)
    open_ended = [schema.get("additionalProperties"), *schema.get("patternProperties", {}).values()]
    return [expanded for extra in open_ended if isinstance(extra, dict) for expanded in _expand(extra, root)]


def _expand(schema: dict[str, Any], root: dict[str, Any]) -> list[dict[str, Any]]:
    """`schema` and all its alternatives, with references resolved."""
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
    schemas = [schema]
    if "discriminator" not in schema:
        for alternative in [*schema.get("anyOf", []), *schema.get("oneOf", []), *schema.get("allOf", [])]:
            schemas += _expand(alternative, root)
    return schemas


def _properties(parents: list[dict[str, Any]], root: dict[str, Any]) -> dict[str, Any]:
    return {key: value for schema in parents for key, value in schema.get("properties", {}).items()}
