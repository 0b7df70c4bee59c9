"""A ModelConfig as transformers' config.json, and back. Family-specific parts are in `families`."""

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from cupola_platform.errors import ConfigError
from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.conversion import families
from cupola_trainer.conversion.family import SEQUENCE, Family
from cupola_trainer.conversion.position_entries import (
    dual_chunk_entries,
    dual_chunk_values,
    rope_entries,
    rope_values,
    window_values,
)

ENTRIES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "num_query_groups": "num_key_value_heads",
    "rms_norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "init_std": "initializer_range",
}
"""ModelConfig fields that every family's config.json has, and their names there."""

OTHERS = {
    "aux_loss_coeff": "router_aux_loss_coef",
    "attention_windows": "sliding_window",
    "dual_chunk": "dual_chunk_attention_config",
    "expert_ffn_hidden_size": "moe_intermediate_size",
    "local_window": "local_size",
    "rope_scaling": "rope_parameters",
    "shared_expert_ffn_hidden_size": "shared_expert_intermediate_size",
    "top_k": "num_experts_per_tok",
}
"""config.json's names of further fields, for messages."""


def to_config(
    model: ModelConfig, *, dtype: str, bos: int | None, eos: int | list[int] | None, pad: int | None
) -> dict[str, Any]:
    """A transformers config.json for a model. `vocab_size` is the embedding's rows, padding included.

    Raises:
        ConfigError: transformers has no such model.
    """
    family = families.of(model)
    config: dict[str, Any] = {
        "architectures": [family.sequence_classifier if model.is_scalar else family.architecture],
        "model_type": family.model_type,
        "dtype": dtype,
        "torch_dtype": dtype,
        "attention_dropout": 0.0,
        "use_cache": True,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
    }
    config |= {theirs: getattr(model, ours) for ours, theirs in ENTRIES.items()}
    if model.head_dim:  # a field of Llama and Gemma; Qwen reads it if present
        config["head_dim"] = model.head_dim
    scalar = {"id2label": {"0": "reward"}, "label2id": {"reward": 0}} if model.is_scalar else {}
    return config | rope_entries(model) | scalar | family.config_entries(model) | dual_chunk_entries(model)


def from_config(config: Mapping[str, Any]) -> ModelConfig:
    """The model that a transformers config.json describes. Missing entries get transformers' defaults.

    Raises:
        ConfigError: an unsupported architecture or variant; names the entry.
    """
    family = _family(config)
    full = _with_defaults(config)
    for key, value in {**family.only, "quantization_config": None}.items():
        if (full.get(key, value) or value) != value:
            raise ConfigError(f"config.json: {key}={full[key]!r} is not supported. Only {value!r} is.")
    try:
        model = ModelConfig(
            **family.fixed_values
            | {ours: full[theirs] for ours, theirs in ENTRIES.items()}
            | _head_dim(full)
            | window_values(full)
            | family.model_values(full)
            | rope_values(full)
            | dual_chunk_values(full)
            | _head(config)
        )
    except ValidationError as error:
        raise ConfigError(_line(error)) from error
    return model if families.of(model) is family else replace(model, family=family.model_type)


def _family(config: Mapping[str, Any]) -> Family:
    family, classes = families.named(config.get("model_type")), config.get("architectures") or []
    known = [family.architecture, family.sequence_classifier]
    if not isinstance(classes, list) or any(name not in known for name in classes):
        raise ConfigError(
            f"architectures={classes!r} is not supported. Supported for {family.model_type}: {', '.join(known)}."
        )
    return family


def _line(error: ValidationError) -> str:
    """The first validation error, with config.json's names."""
    names = ENTRIES | OTHERS
    first = error.errors()[0]
    rule = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), first["msg"].removeprefix("Value error, "))
    if not first["loc"]:
        return f"config.json: {rule}"
    place = ".".join(names.get(str(part), str(part)) for part in first["loc"])
    return f"config.json: {place}={first['input']!r}: {rule[0].lower()}{rule[1:]}."


def _with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    from transformers import AutoConfig  # takes seconds to import

    # a copy, since transformers modifies its arguments
    given = deepcopy({key: value for key, value in config.items() if key != "model_type"})
    try:
        full: dict[str, Any] = AutoConfig.for_model(config["model_type"], **given).to_dict()
    except Exception as error:  # transformers' strict configs raise their own types
        text = " ".join(str(error).split())
        raise ConfigError(f"transformers rejects this config.json: {text}") from error
    return full


def _head_dim(full: Mapping[str, Any]) -> dict[str, Any]:
    """head_dim, if it does not follow from the hidden size."""
    head_dim = full.get("head_dim")
    if head_dim is None or head_dim * full["num_attention_heads"] == full["hidden_size"]:
        return {}
    return {"head_dim": head_dim}


def _head(config: Mapping[str, Any]) -> dict[str, Any]:
    if not any(name.endswith(SEQUENCE) for name in config.get("architectures") or ()):
        return {}
    labels = len(config.get("id2label") or (0, 1))  # transformers' default is two
    if labels != 1:
        raise ConfigError(f"config.json: {SEQUENCE} with {labels} labels is not supported. A reward model has one.")
    return {"head": "scalar"}
