"""Gemma 2 (report, section 2): pre- and post-norms, windows in every other layer, soft-capping, GeGLU."""

from collections.abc import Mapping
from typing import Any

from cupola_platform.errors import ConfigError
from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.conversion.family import ANY, Family
from cupola_trainer.conversion.position_entries import window_entries
from cupola_trainer.conversion.tensor_rules import (
    MLP_NORM,
    POST_ATTENTION_NORM,
    POST_MLP_NORM,
    Rule,
    decoder_rules,
    renamed,
)

NORMS = {
    POST_ATTENTION_NORM: ("model.layers.{layer}.post_attention_layernorm.weight",),
    MLP_NORM: ("model.layers.{layer}.pre_feedforward_layernorm.weight",),
    POST_MLP_NORM: ("model.layers.{layer}.post_feedforward_layernorm.weight",),
}
"""In other families, `post_attention_layernorm` is the norm before the FFN; here it follows attention."""


def config_entries(model: ModelConfig) -> dict[str, Any]:
    """Gemma 2's entries of config.json.

    Raises:
        ConfigError: query_pre_attn_scalar is not an integer.
    """
    scalar = model.query_pre_attn_scalar or model.head_size
    if scalar != int(scalar):
        raise ConfigError(
            f"query_pre_attn_scalar={scalar}: transformers' Gemma 2 accepts only integers. It cannot be exported."
        )
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": model.head_size,
        "attention_bias": False,
        "query_pre_attn_scalar": int(scalar),
        "attn_logit_softcapping": model.attn_logit_softcapping,
        "final_logit_softcapping": model.final_logit_softcapping,
        **window_entries(model),
    }


def model_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The scale of attention scores, and the caps of scores and logits."""
    scalar = config["query_pre_attn_scalar"]
    return {
        "query_pre_attn_scalar": None if scalar == config["head_dim"] else scalar,
        "attn_logit_softcapping": config["attn_logit_softcapping"],
        "final_logit_softcapping": config["final_logit_softcapping"],
    }


def rules(model: ModelConfig) -> list[Rule]:
    """The usual rules, with Gemma's names of its four norms."""
    return renamed(decoder_rules(model), NORMS)


FAMILY = Family(
    model_type="gemma2",
    title="Gemma 2",
    architecture="Gemma2ForCausalLM",
    traits={
        "activation": "gelu_tanh",
        "post_norm": True,
        "zero_centered_norm": True,
        "scale_embeddings": True,
        "query_pre_attn_scalar": ANY,
        "attn_logit_softcapping": ANY,
        "final_logit_softcapping": ANY,
        "window_sizes": ANY,
        "windows_in_some_layers": ANY,
    },
    only={"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "use_bidirectional_attention": None},
    config_entries=config_entries,
    model_values=model_values,
    rules=rules,
)
