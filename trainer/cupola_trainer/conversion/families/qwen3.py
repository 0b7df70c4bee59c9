"""Qwen3 (technical report, section 2): Qwen2 with a norm on each head's queries and keys, and no bias."""

from typing import Any

from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.conversion.families import qwen2
from cupola_trainer.conversion.family import ANY, Family


def config_entries(model: ModelConfig) -> dict[str, Any]:
    """Qwen3's entries of config.json."""
    return qwen2.config_entries(model) | {"head_dim": model.head_size, "attention_bias": False}


FAMILY = Family(
    model_type="qwen3",
    title="Qwen3",
    architecture="Qwen3ForCausalLM",
    traits={"qk_norm": True, "window_sizes": ANY, "windows_in_some_layers": ANY},
    only={"hidden_act": "silu", "attention_bias": False},
    config_entries=config_entries,
)
