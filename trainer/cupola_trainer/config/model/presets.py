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

QWEN3: dict[str, Any] = {
    "vocab_size": 151_936, "head_dim": 128, "max_position_embeddings": 40_960, "qkv_bias": False, "qk_norm": True,
    "tie_embeddings": False,
}  # fmt: skip
"""Qwen3 technical report, tables 1 and 2."""

MISTRAL: dict[str, Any] = {
    "vocab_size": 32_768, "max_position_embeddings": 32_768, "rms_norm_eps": 1e-5, "qkv_bias": False,
    "tie_embeddings": False, "family": "mistral",
}  # fmt: skip
"""Mistral 7B (Jiang et al. 2023), table 1, with the vocabulary, base and full attention of version 0.3."""

MIXTRAL = MISTRAL | {"vocab_size": 32_000, "family": None}
"""Mixtral of experts (Jiang et al. 2024), table 1."""

GEMMA: dict[str, Any] = {
    "vocab_size": 256_000, "head_dim": 256, "activation": "gelu_tanh", "max_position_embeddings": 8192,
    "rope_theta": 10_000.0, "zero_centered_norm": True, "qkv_bias": False, "tie_embeddings": True,
    "scale_embeddings": True,
}  # fmt: skip
"""Gemma report, table 1. Its feedforward dimension counts gate and up; ours counts one."""

GEMMA3: dict[str, Any] = {
    "vocab_size": 262_144, "head_dim": 256, "activation": "gelu_tanh", "max_position_embeddings": 32_768,
    "rope_theta": 1_000_000.0, "local_rope_theta": 10_000.0, "attention_windows": (512,) * 5 + (None,), "qk_norm": True,
    "zero_centered_norm": True, "post_norm": True, "qkv_bias": False, "tie_embeddings": True, "scale_embeddings": True,
}  # fmt: skip
"""Gemma 3 report, section 2; those without a vision encoder."""

OLMO2: dict[str, Any] = {
    "vocab_size": 100_352, "max_position_embeddings": 4096, "rope_theta": 500_000.0, "joint_qk_norm": True,
    "pre_norm": False, "post_norm": True, "qkv_bias": False, "tie_embeddings": False,
}  # fmt: skip
"""OLMo 2 (Walsh et al. 2024), tables 1 and 3."""

PHI3: dict[str, Any] = {
    "vocab_size": 32_064, "max_position_embeddings": 4096, "rope_theta": 10_000.0, "rms_norm_eps": 1e-5,
    "attention_windows": (2047,), "qkv_bias": False, "tie_embeddings": False, "family": "phi3",
}  # fmt: skip
"""Phi-3 technical report, section 2; the window is its published weights'."""

A3B = MoEConfig(num_experts=128, top_k=8, expert_ffn_hidden_size=768, norm_topk_prob=True)
A22B = MoEConfig(num_experts=128, top_k=8, expert_ffn_hidden_size=1536, norm_topk_prob=True)
EIGHT_7B = MoEConfig(expert_ffn_hidden_size=14_336, norm_topk_prob=True)
EIGHT_22B = MoEConfig(expert_ffn_hidden_size=16_384, norm_topk_prob=True)
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
    "qwen3-0.6b": _shape(28, 1024, 16, 8, 3072, QWEN3 | {"tie_embeddings": True}),
    "qwen3-1.7b": _shape(28, 2048, 16, 8, 6144, QWEN3 | {"tie_embeddings": True}),
    "qwen3-4b": _shape(36, 2560, 32, 8, 9728, QWEN3 | {"tie_embeddings": True}),
    "qwen3-8b": _shape(36, 4096, 32, 8, 12_288, QWEN3),
    "qwen3-14b": _shape(40, 5120, 40, 8, 17_408, QWEN3),
    "qwen3-32b": _shape(64, 5120, 64, 8, 25_600, QWEN3),
    "qwen3-30b-a3b": _shape(48, 2048, 32, 4, 6144, QWEN3 | {"moe": A3B}),
    "qwen3-235b-a22b": _shape(94, 4096, 64, 4, 12_288, QWEN3 | {"moe": A22B}),
    "smollm2-135m": _shape(30, 576, 9, 3, 1536, SMOLLM2),
    "smollm2-360m": _shape(32, 960, 15, 5, 2560, SMOLLM2),
    "smollm2-1.7b": _shape(24, 2048, 32, 32, 8192, SMOLLM2 | {"rope_theta": 130_000.0}),
    "llama-3.2-1b": _shape(16, 2048, 32, 8, 8192, SMALL_LLAMA3),
    "llama-3.2-3b": _shape(28, 3072, 24, 8, 8192, SMALL_LLAMA3),
    "llama-3.1-8b": _shape(32, 4096, 32, 8, 14_336, LLAMA3),
    "llama-3.1-70b": _shape(80, 8192, 64, 8, 28_672, LLAMA3),
    "llama-3.1-405b": _shape(126, 16_384, 128, 8, 53_248, LLAMA3),
    "mistral-7b-v0.1": _shape(
        32, 4096, 32, 8, 14_336, MISTRAL | {"vocab_size": 32_000, "rope_theta": 10_000.0, "attention_windows": (4096,)}
    ),
    "mistral-7b-v0.3": _shape(32, 4096, 32, 8, 14_336, MISTRAL),
    "mistral-nemo-12b": _shape(
        40, 5120, 32, 8, 14_336, MISTRAL | {"vocab_size": 131_072, "head_dim": 128, "max_position_embeddings": 131_072}
    ),
    "mixtral-8x7b": _shape(32, 4096, 32, 8, 14_336, MIXTRAL | {"moe": EIGHT_7B}),
    "mixtral-8x22b": _shape(56, 6144, 48, 8, 16_384, MIXTRAL | {"max_position_embeddings": 65_536, "moe": EIGHT_22B}),
    "phi-3-mini-4k": _shape(32, 3072, 32, 32, 8192, PHI3),
    "phi-3-medium-4k": _shape(40, 5120, 40, 10, 17_920, PHI3),
    "olmo-2-1b": _shape(16, 2048, 16, 16, 8192, OLMO2),
    "olmo-2-7b": _shape(32, 4096, 32, 32, 11_008, OLMO2),
    "olmo-2-13b": _shape(40, 5120, 40, 40, 13_824, OLMO2),
    "olmo-2-32b": _shape(64, 5120, 40, 8, 27_648, OLMO2),
    "gemma-2b": _shape(18, 2048, 8, 1, 16_384, GEMMA),
    "gemma-7b": _shape(28, 3072, 16, 16, 24_576, GEMMA),
    "gemma-2-2b": _shape(26, 2304, 8, 4, 9216, GEMMA2),
    "gemma-2-9b": _shape(42, 3584, 16, 8, 14_336, GEMMA2),
    "gemma-2-27b": _shape(46, 4608, 32, 16, 36_864, GEMMA2 | {"head_dim": 128, "query_pre_attn_scalar": 144}),
    "gemma-3-270m": _shape(18, 640, 4, 1, 2048, GEMMA3),
    "gemma-3-1b": _shape(26, 1152, 4, 1, 6912, GEMMA3),
}


def preset(name: str, **changes: Any) -> ModelConfig:
    """The shape of a published model, with changes.

    Raises:
        ConfigError: no preset has this name.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r} is not known. Known: {', '.join(PRESETS)}.")
    return replace(PRESETS[name], **changes)
