"""Gemma 3's text models (report, section 2): Gemma 2 with a norm on queries and keys instead of soft-capped scores, and
a RoPE of its own in layers with a window."""

from typing import Any

from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.conversion.families import gemma2
from cupola_trainer.conversion.family import ANY, Family


def config_entries(model: ModelConfig) -> dict[str, Any]:
    """Gemma 3's entries of config.json."""
    return gemma2.config_entries(model) | {"use_bidirectional_attention": False}


FAMILY = Family(
    model_type="gemma3_text",
    title="Gemma 3",
    architecture="Gemma3ForCausalLM",
    classifier="Gemma3TextForSequenceClassification",
    traits={**gemma2.FAMILY.traits, "qk_norm": True, "local_rope_theta": ANY},
    only={"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "use_bidirectional_attention": False},
    config_entries=config_entries,
    model_values=gemma2.model_values,
    rules=gemma2.rules,
)
