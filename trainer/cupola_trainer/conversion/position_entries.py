"""Position entries of config.json, written and read: RoPE, windows and dual chunks."""

from collections.abc import Mapping
from typing import Any

from cupola_platform.errors import ConfigError
from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.config.model.positions import DynamicRope

ROPES = {"default": (), "linear": ("factor",), "dynamic": ("factor",),
         "yarn": ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor"),
         "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor")}  # fmt: skip
"""RoPE types and their entries in `rope_parameters`, named as in ModelConfig."""


def rope_entries(model: ModelConfig) -> dict[str, Any]:
    """RoPE's entries. The base appears twice: in `rope_parameters` for transformers 5, at top level for version 4."""
    scaling = model.rope_scaling
    parameters: dict[str, Any] = {"rope_type": scaling.type if scaling else "default", "rope_theta": model.rope_theta}
    entries = {name: getattr(scaling, name) for name in ROPES[parameters["rope_type"]]}
    parameters |= {name: value for name, value in entries.items() if value is not None}
    longest = model.max_position_embeddings
    if isinstance(scaling, DynamicRope):
        longest = scaling.original_max_position_embeddings
    local = {}
    if model.local_rope_theta:
        local = {"rope_local_base_freq": model.local_rope_theta}
        plain = {"rope_type": "default", "rope_theta": model.local_rope_theta}
        parameters = {"full_attention": parameters, "sliding_attention": plain}
    return {"max_position_embeddings": longest, "rope_theta": model.rope_theta, "rope_parameters": parameters} | local


def rope_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """A ModelConfig's RoPE values from config.json.

    Raises:
        ConfigError: an unsupported form of RoPE; names the entry.
    """
    given, local = config["rope_parameters"], {}
    if "full_attention" in given:  # one for each kind of layer
        if given["sliding_attention"]["rope_type"] != "default":
            raise ConfigError("config.json: scaled RoPE in layers with a window is not supported.")
        given, local = given["full_attention"], {"local_rope_theta": given["sliding_attention"]["rope_theta"]}
    given = {name: value for name, value in given.items() if value is not None}
    kind, theta = given.pop("rope_type"), given.pop("rope_theta")
    given.pop("type", None)  # the name of rope_type before transformers 4.45
    if given.pop("partial_rotary_factor", 1.0) != 1:
        raise ConfigError("config.json: partial_rotary_factor (RoPE on part of a head) is not supported.")
    longest = config["max_position_embeddings"]
    rope = {"rope_theta": theta, "max_position_embeddings": longest, **local}
    if kind == "default":
        return rope
    if kind not in ROPES:
        raise ConfigError(f"config.json: RoPE of type {kind!r} is not supported. Supported: {', '.join(ROPES)}.")
    if kind == "dynamic":  # transformers reads no other entry
        given["original_max_position_embeddings"] = longest
    original = given.setdefault("original_max_position_embeddings", longest)
    unknown = sorted(set(given) - set(ROPES[kind]) - {"original_max_position_embeddings"})
    if unknown:
        raise ConfigError(f"config.json: rope_parameters.{unknown[0]} is not supported with RoPE of type {kind!r}.")
    if kind == "linear":
        del given["original_max_position_embeddings"]
    factor = given.get("factor", 1)
    if isinstance(factor, bool) or not isinstance(factor, int | float):
        raise ConfigError(f"config.json: rope_parameters.factor={factor!r} is not a number.")
    if kind in ("yarn", "dynamic"):  # Hugging Face keeps max_position_embeddings at the trained length
        rope["max_position_embeddings"] = max(longest, int(factor * original))
    return rope | {"rope_scaling": {"type": kind, **given}}


def window_entries(model: ModelConfig) -> dict[str, Any]:
    """The layers that have a window, and its size."""
    windows = [model.window(layer) for layer in range(model.num_layers)]
    return {
        "sliding_window": next(filter(None, windows), None),
        "layer_types": ["sliding_attention" if window else "full_attention" for window in windows],
    }


def window_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The windows as the shortest pattern that repeats over the layers."""
    size = config.get("sliding_window")
    types = config.get("layer_types") or []
    if not size or "sliding_attention" not in types:
        return {}
    windows = tuple(size if kind == "sliding_attention" else None for kind in types)
    patterns = (windows[:length] for length in range(1, len(windows) + 1))
    shortest = next(pattern for pattern in patterns if windows == (pattern * len(windows))[: len(windows)])
    return {"attention_windows": shortest}


def uniform_window_entries(model: ModelConfig) -> dict[str, Any]:
    """The window of families that have the same one in every layer."""
    return {"sliding_window": model.window(0)}


def uniform_window_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of `uniform_window_entries`."""
    size = config.get("sliding_window")
    return {"attention_windows": (size,)} if size else {}


def dual_chunk_entries(model: ModelConfig) -> dict[str, Any]:
    """Entries as in Qwen2.5-1M's config.json: vLLM reads them; transformers ignores them and uses plain attention."""
    chunk, scaling = model.dual_chunk, model.length_scaling
    if chunk is None:
        return {}
    entries = {"chunk_size": chunk.chunk_size, "local_size": chunk.local_window}
    grown = {"original_max_position_embeddings": scaling.original_max_position_embeddings} if scaling else {}
    return {"dual_chunk_attention_config": entries | grown}


def dual_chunk_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """A ModelConfig's dual chunks, and query scaling if `original_max_position_embeddings` is given.

    Raises:
        ConfigError: an unsupported entry; names it.
    """
    entries = config.get("dual_chunk_attention_config") or {}
    if not entries:
        return {}
    if not isinstance(entries, dict):
        raise ConfigError(f"config.json: dual_chunk_attention_config={entries!r} is not a mapping.")
    given = dict(entries)
    read: dict[str, Any] = {}
    if trained := given.pop("original_max_position_embeddings", 0):
        read["length_scaling"] = {"type": "yarn", "original_max_position_embeddings": trained}
    chunk = {"chunk_size": given.pop("chunk_size", None), "local_window": given.pop("local_size", None)}
    if given:
        raise ConfigError(f"config.json: dual_chunk_attention_config.{min(given)} is not supported.")
    return read | {"dual_chunk": chunk}
