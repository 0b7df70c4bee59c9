"""Gemma (report, section 2): GeGLU, norms that multiply by one plus their weight, and a scaled embedding."""

from typing import Any

from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.conversion.family import Family


def config_entries(model: ModelConfig) -> dict[str, Any]:
    """Gemma's entries of config.json. Its first files name the exact GELU; it was trained with the tanh form."""
    return {
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": model.head_size,
        "attention_bias": False,
    }


FAMILY = Family(
    model_type="gemma",
    title="Gemma",
    architecture="GemmaForCausalLM",
    traits={"activation": "gelu_tanh", "zero_centered_norm": True, "scale_embeddings": True},
    only={"hidden_act": "gelu_pytorch_tanh", "attention_bias": False, "use_bidirectional_attention": None},
    config_entries=config_entries,
)
