"""Qwen2-MoE: Qwen2 with a mixture of experts in place of every FFN (Qwen2 technical report, section 2.2.2)."""

from typing import Any

from cupola_platform.errors import ConfigError
from cupola_trainer.config import ModelConfig, ParallelConfig
from cupola_trainer.models import qwen2
from cupola_trainer.runtime import expert_tensor_parallel_size


def settings(model: ModelConfig, parallel: ParallelConfig) -> dict[str, Any]:
    """What Megatron's TransformerConfig says of a Qwen2-MoE decoder.

    p = softmax over all experts in fp32; y = sum over the top k of p_i E_i(x), renormalised only if `norm_topk_prob`.
    """
    moe = model.moe
    if moe is None:
        raise ConfigError("a dense model has no experts.")
    return qwen2.settings(model, parallel) | {
        "num_moe_experts": moe.num_experts,
        "moe_router_topk": moe.top_k,
        "moe_ffn_hidden_size": moe.expert_ffn_hidden_size,
        "moe_shared_expert_intermediate_size": moe.shared_expert_ffn_hidden_size,
        "moe_shared_expert_gate": moe.shared_expert_ffn_hidden_size is not None,
        "moe_layer_freq": 1,
        "moe_router_score_function": "softmax",
        "moe_router_pre_softmax": not moe.norm_topk_prob,
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "aux_loss" if moe.aux_loss_coeff else "none",
        "moe_aux_loss_coeff": moe.aux_loss_coeff,
        "moe_z_loss_coeff": moe.z_loss_coeff or None,
        "moe_token_dispatcher_type": "alltoall",
        "moe_grouped_gemm": False,
        "expert_model_parallel_size": parallel.ep,
        "expert_tensor_parallel_size": expert_tensor_parallel_size(parallel),
    }
