"""OLMo 2 (Walsh et al. 2024, section 3.3): norms only on the outputs of attention and FFN, and over all heads of
queries and keys."""

from typing import Any

from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.conversion.family import Family
from cupola_trainer.conversion.tensor_rules import (
    POST_ATTENTION_NORM,
    POST_MLP_NORM,
    Rule,
    decoder_rules,
    renamed,
)

NORMS = {
    POST_ATTENTION_NORM: ("model.layers.{layer}.post_attention_layernorm.weight",),
    POST_MLP_NORM: ("model.layers.{layer}.post_feedforward_layernorm.weight",),
}


def config_entries(model: ModelConfig) -> dict[str, Any]:
    """OLMo 2's entries of config.json."""
    return {"hidden_act": "silu", "head_dim": model.head_size, "attention_bias": False}


def rules(model: ModelConfig) -> list[Rule]:
    """The usual rules, with OLMo 2's names of its two norms."""
    return renamed(decoder_rules(model), NORMS)


FAMILY = Family(
    model_type="olmo2",
    title="OLMo 2",
    architecture="Olmo2ForCausalLM",
    traits={"joint_qk_norm": True, "pre_norm": False, "post_norm": True},
    only={"hidden_act": "silu", "attention_bias": False},
    config_entries=config_entries,
    rules=rules,
)
