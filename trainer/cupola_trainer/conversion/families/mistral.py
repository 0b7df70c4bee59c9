"""Mistral (Jiang et al. 2023): Llama's shape, and in its first version a sliding window in every layer."""

from typing import Any

from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.conversion.family import ANY, Family
from cupola_trainer.conversion.position_entries import uniform_window_entries, uniform_window_values


def config_entries(model: ModelConfig) -> dict[str, Any]:
    """Mistral's entries of config.json."""
    return {"hidden_act": "silu", "head_dim": model.head_size, **uniform_window_entries(model)}


FAMILY = Family(
    model_type="mistral",
    title="Mistral",
    architecture="MistralForCausalLM",
    traits={"window_sizes": ANY},
    only={"hidden_act": "silu"},
    config_entries=config_entries,
    model_values=uniform_window_values,
)
