"""Values of rows in JSON's types."""

import ast
import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from cupola_platform.json_lines import BadLineError

PRINTED = 1 << 20
"""Maximum characters of a Python literal to parse: the parser needs a hundred times as much memory."""


def plain(value: Any) -> Any:
    """A value in JSON's types, without null fields.

    Arrow gives every row the keys of all rows, so its nulls carry no meaning.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(held) for key, held in value.items() if held is not None}
    if isinstance(value, list | tuple):
        return [plain(held) for held in value]
    if isinstance(value, Decimal):
        return float(value)
    return value if isinstance(value, int | float) or value is None else str(value)


def decoded(value: Any) -> Any:
    """The value of a JSON string or of a Python list or dict literal; anything else unchanged.

    Raises:
        BadLineError: the JSON is nested too deep to read.
    """
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return plain(json.loads(value))
    except RecursionError:
        raise BadLineError("nested_too_deep", "nested too deep") from None
    except ValueError:
        if len(value) > PRINTED:
            return value
    try:
        return plain(ast.literal_eval(value.strip()))  # the format of lists in pandas' CSV
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return value


def number(value: Any) -> float | None:
    """A number, also from a string; None for anything else."""
    try:
        as_float = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        return None
    return as_float if as_float is not None and abs(as_float) < float("inf") else None
