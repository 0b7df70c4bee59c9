"""Published models by name, with the numbers of their reports. Nothing here imports torch."""

from dataclasses import replace
from typing import Any

from cupola_platform.errors import ConfigError
from cupola_trainer.config.model.architecture import ModelConfig, MoEConfig
from cupola_trainer.config.model.positions import Llama3Rope

QWEN2: dict[str, Any] = {"max_position_embeddings": 32_768}
"""Qwen2 technical report, sections 2.2 and 2.3."""

UNTIED = QWEN2 | {"vocab_size": 152_064, "tie_embeddings": False}
TIED = QWEN2 | {"vocab_size": 151_936, "tie_embeddings": True}

LLAMA3: dict[str, Any] = {
    "vocab_size": 128_256, "max_position_embeddings": 131_072, "rope_theta": 500_000.0, "rope_scaling": Llama3Rope(),
    "rms_norm_eps": 1e-5, "qkv_bias": False, "tie_embeddings": False,
}  # fmt: skip
"""The Llama 3 herd of models, table 3; RoPE scaling is 3.1's."""

SMALL_LLAMA3 = LLAMA3 | {"rope_scaling": Llama3Rope(factor=32.0), "tie_embeddings": True}

SMOLLM2: dict[str, Any] = {
    "vocab_size": 49_152, "max_position_embeddings": 8192, "rope_theta": 100_000.0, "rms_norm_eps": 1e-5,
    "qkv_bias": False, "tie_embeddings": True,
}  # fmt: skip
"""SmolLM2 (Ben Allal et al. 2025): Llama's shape."""

GEMMA2: dict[str, Any] = {
    "vocab_size": 256_000, "head_dim": 256, "activation": "gelu_tanh", "max_position_embeddings": 8192,
    "rope_theta": 10_000.0, "attention_windows": (4096, None), "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0, "zero_centered_norm": True, "post_norm": True, "qkv_bias": False,
    "tie_embeddings": True, "scale_embeddings": True,
}  # fmt: skip
"""Gemma 2 report, section 2. Its feedforward dimension counts gate and up; ours counts one."""

A14B = MoEConfig(num_experts=64, top_k=8, expert_ffn_hidden_size=2560, shared_expert_ffn_hidden_size=20_480)
A2_7B = MoEConfig(num_experts=60, top_k=4, expert_ffn_hidden_size=1408, shared_expert_ffn_hidden_size=5632)
TINY = MoEConfig(num_experts=8, top_k=2, expert_ffn_hidden_size=256, shared_expert_ffn_hidden_size=512)


def _shape(layers: int, hidden: int, heads: int, groups: int, ffn: int, family: dict[str, Any]) -> ModelConfig:
    return ModelConfig(
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_query_groups=groups,
        ffn_hidden_size=ffn,
        **family,
    )


PRESETS: dict[str, ModelConfig] = {
    "qwen2-tiny": _shape(8, 256, 8, 2, 768, TIED | {"vocab_size": 8192, "max_position_embeddings": 2048}),
    "qwen2-moe-tiny": _shape(
        8, 256, 8, 2, 768, TIED | {"vocab_size": 8192, "max_position_embeddings": 2048, "moe": TINY}
    ),
    "qwen2-0.5b": _shape(24, 896, 14, 2, 4864, TIED),
    "qwen2-1.5b": _shape(28, 1536, 12, 2, 8960, TIED),
    "qwen2-7b": _shape(28, 3584, 28, 4, 18_944, UNTIED),
    "qwen2-72b": _shape(80, 8192, 64, 8, 29_568, UNTIED),
    "qwen2-57b-a14b": _shape(28, 3584, 28, 4, 18_944, UNTIED | {"vocab_size": 151_936, "moe": A14B}),
    "qwen1.5-moe-a2.7b": _shape(24, 2048, 16, 16, 5632, UNTIED | {"vocab_size": 151_936, "moe": A2_7B}),
    "qwen2.5-0.5b": _shape(24, 896, 14, 2, 4864, TIED),
    "qwen2.5-1.5b": _shape(28, 1536, 12, 2, 8960, TIED),
    "qwen2.5-3b": _shape(36, 2048, 16, 2, 11_008, TIED),
    "qwen2.5-7b": _shape(28, 3584, 28, 4, 18_944, UNTIED),
    "qwen2.5-14b": _shape(48, 5120, 40, 8, 13_824, UNTIED),
    "qwen2.5-32b": _shape(64, 5120, 40, 8, 27_648, UNTIED),
    "qwen2.5-72b": _shape(80, 8192, 64, 8, 29_568, UNTIED),
    "smollm2-135m": _shape(30, 576, 9, 3, 1536, SMOLLM2),
    "smollm2-360m": _shape(32, 960, 15, 5, 2560, SMOLLM2),
    "smollm2-1.7b": _shape(24, 2048, 32, 32, 8192, SMOLLM2 | {"rope_theta": 130_000.0}),
    "llama-3.2-1b": _shape(16, 2048, 32, 8, 8192, SMALL_LLAMA3),
    "llama-3.2-3b": _shape(28, 3072, 24, 8, 8192, SMALL_LLAMA3),
    "llama-3.1-8b": _shape(32, 4096, 32, 8, 14_336, LLAMA3),
    "llama-3.1-70b": _shape(80, 8192, 64, 8, 28_672, LLAMA3),
    "llama-3.1-405b": _shape(126, 16_384, 128, 8, 53_248, LLAMA3),
    "gemma-2-2b": _shape(26, 2304, 8, 4, 9216, GEMMA2),
    "gemma-2-9b": _shape(42, 3584, 16, 8, 14_336, GEMMA2),
    "gemma-2-27b": _shape(46, 4608, 32, 16, 36_864, GEMMA2 | {"head_dim": 128, "query_pre_attn_scalar": 144}),
}


def preset(name: str, **changes: Any) -> ModelConfig:
    """The shape of a published model, with changes.

    Raises:
        ConfigError: no preset has this name.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r} is not known. Known: {', '.join(PRESETS)}.")
    return replace(PRESETS[name], **changes)
