"""A config.json of transformers, read as a ModelConfig."""

import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from pydantic import ValidationError

from cupola_platform.errors import ConfigError
from cupola_trainer.architecture import ModelConfig, MoEConfig
from cupola_trainer.conversion.families import CLASSES, FAMILIES, ROPES, SEQUENCE

ONLY: dict[str, Any] = {
    "hidden_act": "silu",
    "hidden_activation": "gelu_pytorch_tanh",
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "attention_bias": False,
    "mlp_bias": False,
    "use_bidirectional_attention": None,
    "quantization_config": None,
}
"""Entries of which we build one value only."""

NAMES = {
    "aux_loss_coeff": "router_aux_loss_coef",
    "attention_windows": "sliding_window",
    "dual_chunk": "dual_chunk_attention_config",
    "expert_ffn_hidden_size": "moe_intermediate_size",
    "ffn_hidden_size": "intermediate_size",
    "init_std": "initializer_range",
    "local_window": "local_size",
    "num_layers": "num_hidden_layers",
    "num_query_groups": "num_key_value_heads",
    "rope_scaling": "rope_parameters",
    "shared_expert_ffn_hidden_size": "shared_expert_intermediate_size",
    "tie_embeddings": "tie_word_embeddings",
    "top_k": "num_experts_per_tok",
}
"""What config.json calls our entries, where it calls them otherwise."""


def from_config(config: Mapping[str, Any]) -> ModelConfig:
    """The model that a config.json of transformers describes. Entries that it leaves out get transformers' defaults.

    Raises:
        ConfigError: another architecture, or a variant of one that we do not build; names the entry.
    """
    family = _family(config)
    full = _with_defaults(config)
    for key, value in ONLY.items():
        if key == "hidden_act" and "hidden_activation" in full:
            continue  # Gemma's files give both, and transformers reads the other
        if (full.get(key, value) or value) != value:
            raise ConfigError(f"config.json: {key}={full[key]!r} is not supported. Only {value!r} is.")
    try:
        return ModelConfig(**_common(full) | _own(family, full) | _rope(full) | _dual_chunk(full) | _head(config))
    except ValidationError as error:
        raise ConfigError(_line(error)) from error


def _family(config: Mapping[str, Any]) -> str:
    family, classes = config.get("model_type"), config.get("architectures") or []
    if not isinstance(family, str) or family not in FAMILIES:
        raise ConfigError(f"model_type={family!r} is not known. Known architectures: {', '.join(FAMILIES)}.")
    known = [CLASSES[family], CLASSES[family].replace("ForCausalLM", SEQUENCE)]
    if not isinstance(classes, list) or any(name not in known for name in classes):
        raise ConfigError(f"architectures={classes!r} is not known. Of {family}: {', '.join(known)}.")
    return family


def _line(error: ValidationError) -> str:
    """The first thing wrong with the values, in config.json's words."""
    first = error.errors()[0]
    rule = re.sub(r"\w+", lambda word: NAMES.get(word[0], word[0]), first["msg"].removeprefix("Value error, "))
    if not first["loc"]:
        return f"config.json: {rule}"
    place = ".".join(NAMES.get(str(part), str(part)) for part in first["loc"])
    return f"config.json: {place}={first['input']!r}: {rule[0].lower()}{rule[1:]}."


def _with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    from transformers import AutoConfig  # seconds long

    # a copy: transformers writes into what it is given
    given = deepcopy({key: value for key, value in config.items() if key != "model_type"})
    try:
        full: dict[str, Any] = AutoConfig.for_model(config["model_type"], **given).to_dict()
    except Exception as error:  # transformers' strict configs raise types of their own
        text = " ".join(str(error).split())
        raise ConfigError(f"config.json is not one that transformers takes: {text}") from error
    return full


def _common(full: dict[str, Any]) -> dict[str, Any]:
    heads, hidden = full["num_attention_heads"], full["hidden_size"]
    head_dim = full.get("head_dim")
    return {
        "vocab_size": full["vocab_size"],
        "hidden_size": hidden,
        "num_layers": full["num_hidden_layers"],
        "num_attention_heads": heads,
        "num_query_groups": full["num_key_value_heads"],
        "head_dim": None if head_dim is None or head_dim * heads == hidden else head_dim,
        "ffn_hidden_size": full["intermediate_size"],
        "attention_windows": _windows(full),
        "rms_norm_eps": full["rms_norm_eps"],
        "tie_embeddings": full["tie_word_embeddings"],
        "init_std": full["initializer_range"],
    }


def _head(config: Mapping[str, Any]) -> dict[str, Any]:
    if not any(name.endswith(SEQUENCE) for name in config.get("architectures") or ()):
        return {}
    labels = len(config.get("id2label") or (0, 1))  # transformers' default is two
    if labels != 1:
        raise ConfigError(f"config.json: {SEQUENCE} with {labels} labels is not supported. A reward model has one.")
    return {"head": "scalar"}


def _own(family: str, full: dict[str, Any]) -> dict[str, Any]:
    """What a family adds to what all have."""
    if family == "qwen2":
        return {}
    if family == "llama":
        return {"qkv_bias": False}
    if family == "gemma2":
        scalar = full["query_pre_attn_scalar"]
        alike = {name: FAMILIES[family][name] for name in ("activation", "post_norm", "zero_centered_norm", "qkv_bias")}
        return alike | {
            "scale_embeddings": True,
            "query_pre_attn_scalar": None if scalar == full["head_dim"] else scalar,
            "attn_logit_softcapping": full["attn_logit_softcapping"],
            "final_logit_softcapping": full["final_logit_softcapping"],
        }
    moe = MoEConfig(
        num_experts=full["num_experts"],
        top_k=full["num_experts_per_tok"],
        expert_ffn_hidden_size=full["moe_intermediate_size"],
        shared_expert_ffn_hidden_size=full["shared_expert_intermediate_size"] or None,
        norm_topk_prob=full["norm_topk_prob"],
        aux_loss_coeff=full["router_aux_loss_coef"],
    )
    return {"moe": moe, "qkv_bias": full["qkv_bias"]}


def _windows(full: dict[str, Any]) -> tuple[int | None, ...]:
    """The shortest pattern that repeats over the layers."""
    size = full.get("sliding_window")
    types = full.get("layer_types") or []
    if not size or "sliding_attention" not in types:
        return ()
    windows = tuple(size if kind == "sliding_attention" else None for kind in types)
    patterns = (windows[:length] for length in range(1, len(windows) + 1))
    return next(pattern for pattern in patterns if windows == (pattern * len(windows))[: len(windows)])


def _dual_chunk(full: dict[str, Any]) -> dict[str, Any]:
    """As Qwen2.5-1M has it; queries grow past `original_max_position_embeddings`, where it is given."""
    entries = full.get("dual_chunk_attention_config") or {}
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


def _rope(full: dict[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in full["rope_parameters"].items() if value is not None}
    kind, theta = given.pop("rope_type"), given.pop("rope_theta")
    given.pop("type", None)  # what rope_type was called before transformers 4.45
    if given.pop("partial_rotary_factor", 1.0) != 1:
        raise ConfigError("config.json: RoPE on a part of a head (partial_rotary_factor) is not supported.")
    longest = full["max_position_embeddings"]
    rope = {"rope_theta": theta, "max_position_embeddings": longest}
    if kind == "default":
        return rope
    if kind not in ROPES:
        raise ConfigError(f"config.json: RoPE of type {kind!r} is not supported. Supported: {', '.join(ROPES)}.")
    if kind == "dynamic":  # transformers reads nothing else
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
    if kind in ("yarn", "dynamic"):  # Hugging Face leaves max_position_embeddings at the trained length
        rope["max_position_embeddings"] = max(longest, int(factor * original))
    return rope | {"rope_scaling": {"type": kind, **given}}
