"""Translates a ModelConfig into Megatron's configuration."""

import math
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from cupola_trainer.config import LayoutConfig, ModelConfig, MoEConfig
from cupola_trainer.models.attention.rope import attention_factor, inverse_frequencies
from cupola_trainer.runtime import expert_tensor_parallel_size


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of GELU (Hendrycks and Gimpel 2016, section 2)."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu_tanh": gelu_tanh}


def settings(model: ModelConfig, layout: LayoutConfig) -> dict[str, Any]:
    """The architecture's part of a DecoderConfig.

    Qwen2: pre-RMSNorm, grouped-query attention with bias on Q, K and V, RoPE, SwiGLU (technical report, section 2.2).
    Gemma 2 (report, section 2): norms on both sides, windows in every other layer, soft-capping, GeGLU.
    """
    experts = mixture(model.moe, layout) if model.moe else {}
    return experts | {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_query_groups": model.num_query_groups,
        "kv_channels": model.head_size,
        "softmax_scale": softmax_scale(model),
        "attn_logit_softcapping": model.attn_logit_softcapping,
        "attention_windows": model.attention_windows,
        "length_scaling": model.length_scaling,
        "dual_chunk": model.dual_chunk,
        "inverse_frequencies": tuple(inverse_frequencies(model).tolist()) if model.dual_chunk else (),
        "ffn_hidden_size": model.ffn_hidden_size,
        "add_bias_linear": False,
        "add_qkv_bias": model.qkv_bias,
        "qk_layernorm": model.qk_norm,
        "gated_linear_unit": True,
        "activation_func": ACTIVATIONS[model.activation],
        "bias_activation_fusion": model.activation == "silu",
        "normalization": "RMSNorm",
        "layernorm_epsilon": model.rms_norm_eps,
        "layernorm_zero_centered_gamma": model.zero_centered_norm,
        "pre_norm": model.pre_norm,
        "post_norm": model.post_norm,
        "joint_qk_norm": model.joint_qk_norm,
        "local_rope": model.local_rope_theta is not None,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    }


def softmax_scale(model: ModelConfig) -> float | None:
    """Scale of attention scores, including YaRN's factor on queries and keys; None for 1 / sqrt(head_dim)."""
    factor = attention_factor(model)
    if model.query_pre_attn_scalar is None and factor == 1:
        return None
    return factor**2 / math.sqrt(model.query_pre_attn_scalar or model.head_size)


def mixture(moe: MoEConfig, layout: LayoutConfig) -> dict[str, Any]:
    """Settings for Qwen2-MoE's experts in every layer (Qwen2 technical report, section 2.2.2).

    p = softmax over all experts in fp32; y = sum over the top k of p_i E_i(x), renormalized only if `norm_topk_prob`.
    """
    return {
        "num_moe_experts": moe.num_experts,
        "moe_router_topk": moe.top_k,
        "moe_ffn_hidden_size": moe.expert_ffn_hidden_size,
        "moe_shared_expert_intermediate_size": moe.shared_expert_ffn_hidden_size,
        "moe_shared_expert_gate": moe.shared_expert_ffn_hidden_size is not None,
        "moe_shared_expert_overlap": layout.overlap and layout.ep > 1 and bool(moe.shared_expert_ffn_hidden_size),
        "moe_layer_freq": 1,
        "moe_router_score_function": moe.score_function,
        "moe_router_pre_softmax": moe.score_function == "softmax" and not moe.norm_topk_prob,
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": balancing_loss(moe) or "none",
        "moe_router_enable_expert_bias": moe.balancing == "bias",
        "moe_router_bias_update_rate": moe.bias_update_rate,
        "moe_expert_capacity_factor": moe.capacity_factor,
        "moe_aux_loss_coeff": moe.aux_loss_coeff,
        "moe_z_loss_coeff": moe.z_loss_coeff or None,
        "moe_token_dispatcher_type": "alltoall",
        "moe_grouped_gemm": False,
        "expert_model_parallel_size": layout.ep,
        "expert_tensor_parallel_size": expert_tensor_parallel_size(layout),
    }


def balancing_loss(moe: MoEConfig) -> str | None:
    """Megatron's name of the balancing loss; None if there is none."""
    return f"{moe.balancing}_loss" if moe.balancing.endswith("aux") and moe.aux_loss_coeff else None
