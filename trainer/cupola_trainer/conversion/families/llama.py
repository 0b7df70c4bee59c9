"""Llama 3 (Dubey et al. 2024, section 3.2), and models of the same shape, such as SmolLM2."""

from typing import Any

from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.conversion.family import Family


def config_entries(model: ModelConfig) -> dict[str, Any]:
    """Llama's entries of config.json."""
    return {"hidden_act": "silu", "head_dim": model.head_size, "attention_bias": False, "mlp_bias": False}


FAMILY = Family(
    model_type="llama",
    title="Llama",
    architecture="LlamaForCausalLM",
    traits={},
    only={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    config_entries=config_entries,
)
