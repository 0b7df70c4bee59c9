"""Qwen2 and Qwen2.5 (Qwen2 technical report, section 2.2.1): a bias on queries, keys and values."""

from typing import Any

from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.conversion.family import ANY, Family
from cupola_trainer.conversion.position_entries import window_entries


def config_entries(model: ModelConfig) -> dict[str, Any]:
    """Qwen2's entries of config.json. transformers 5 reads windows from `layer_types`, version 4 from the other
    entries."""
    windows = [model.window(layer) for layer in range(model.num_layers)]
    return {
        "hidden_act": "silu",
        "use_sliding_window": any(windows),
        "max_window_layers": next((layer for layer, window in enumerate(windows) if window), model.num_layers),
        **window_entries(model),
    }


FAMILY = Family(
    model_type="qwen2",
    title="Qwen2",
    architecture="Qwen2ForCausalLM",
    traits={"qkv_bias": True, "window_sizes": ANY, "windows_in_some_layers": ANY},
    only={"hidden_act": "silu"},
    config_entries=config_entries,
)
