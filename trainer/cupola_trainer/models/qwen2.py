"""Qwen2: pre-RMSNorm, grouped-query attention with bias on Q, K and V, RoPE, SwiGLU (Qwen2 technical report, section 2.2)."""

from typing import Any

import torch.nn.functional as F

from cupola_trainer.config import ModelConfig, ParallelConfig


def settings(model: ModelConfig, parallel: ParallelConfig) -> dict[str, Any]:
    """What Megatron's TransformerConfig says of a Qwen2 decoder."""
    return {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_query_groups": model.num_query_groups,
        "kv_channels": model.hidden_size // model.num_attention_heads,
        "ffn_hidden_size": model.ffn_hidden_size,
        "add_bias_linear": False,
        "add_qkv_bias": model.qkv_bias,
        "gated_linear_unit": True,
        "activation_func": F.silu,
        "normalization": "RMSNorm",
        "layernorm_epsilon": model.rms_norm_eps,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    }
