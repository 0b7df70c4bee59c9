"""Extending a model's context, by settings or by named methods without training. Imports no torch."""

import dataclasses
import math
from typing import Any

from pydantic import ValidationError

from cupola_platform.errors import ConfigError
from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.config.model.positions import (
    DualChunk,
    DynamicRope,
    LengthScaling,
    LinearRope,
    PositionChange,
    YarnRope,
)

METHODS = ("none", "linear", "yarn", "ntk", "dca", "logn", "windows")
"""Names that `method` accepts; join several with +."""


def stretch(model: ModelConfig, change: PositionChange, sequence_length: int) -> ModelConfig:
    """The model with its positions changed, for sequences of at least `sequence_length` tokens.

    Raises:
        ConfigError: the length exceeds the position method's limit, or the changes exclude each other.
    """
    given = {field.name: getattr(change, field.name) for field in dataclasses.fields(change)}
    changes = {name: value for name, value in given.items() if value is not None}
    return _replaced(model, {"max_position_embeddings": max(model.max_position_embeddings, sequence_length)} | changes)


def method(model: ModelConfig, name: str, *, trained: int, longest: int) -> ModelConfig:
    """The model, trained on `trained` tokens, extended to `longest` tokens by the method `name`.

    none: positions continue unchanged. linear, yarn, ntk: RoPE scaled by longest / trained. dca: dual chunks of the
    trained length, a quarter of it as local window. logn: scaled queries. windows: sliding windows, from a quarter of
    the trained length in the lowest layer to all of it. Join several with +: dca+yarn.

    Raises:
        ConfigError: unknown method, methods that exclude each other, or a length beyond a method's limit.
    """
    changes: dict[str, Any] = {"max_position_embeddings": longest}
    for part in name.split("+"):
        for field, value in _changes(model, part, trained, longest).items():
            if field in changes:
                raise ConfigError(
                    f"method {name}: two of its parts set {field}. Join methods that set different things."
                )
            changes[field] = value
    try:
        return _replaced(model, changes)
    except ConfigError as error:
        raise ConfigError(f"method {name}: {error}") from None


def _changes(model: ModelConfig, name: str, trained: int, longest: int) -> dict[str, Any]:
    factor = max(1.0, longest / trained)
    match name:
        case "none":
            return {}
        case "linear":
            return {"rope_scaling": LinearRope(factor=factor)}
        case "yarn":
            return {"rope_scaling": YarnRope(factor=factor, original_max_position_embeddings=trained)}
        case "ntk":
            return {"rope_scaling": DynamicRope(factor=factor, original_max_position_embeddings=trained)}
        case "dca":
            return {"dual_chunk": DualChunk(chunk_size=trained, local_window=trained // 4)}
        case "logn":
            return {"length_scaling": LengthScaling(original_max_position_embeddings=trained)}
        case "windows":
            return {"attention_windows": layer_windows(model.num_layers, max(1, trained // 4), trained)}
    raise ConfigError(f"method {name!r} is not known. Known: {', '.join(METHODS)}; join several with +.")


def layer_windows(layers: int, shortest: int, longest: int) -> tuple[int, ...]:
    """One window per layer, growing geometrically from `shortest` in the lowest to `longest` in the highest: lower
    layers are more sensitive to untrained distances (Qwen technical report, section 2.3)."""
    steps = max(layers - 1, 1)
    return tuple(
        round(shortest * math.exp(math.log(longest / shortest) * (layer if layers > 1 else 1) / steps))
        for layer in range(layers)
    )


def _replaced(model: ModelConfig, changes: dict[str, Any]) -> ModelConfig:
    try:
        return dataclasses.replace(model, **changes)
    except ValidationError as error:
        raise ConfigError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
