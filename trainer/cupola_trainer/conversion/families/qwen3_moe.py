"""Qwen3's mixtures (technical report, section 2): no shared expert; the top k's probabilities sum to one."""

from collections.abc import Mapping
from typing import Any

from cupola_trainer.config.model.architecture import ModelConfig, MoEConfig
from cupola_trainer.conversion.family import ANY, Family
from cupola_trainer.conversion.position_entries import uniform_window_entries, uniform_window_values


def config_entries(model: ModelConfig) -> dict[str, Any]:
    """Qwen3-MoE's entries of config.json."""
    moe = model.moe
    assert moe is not None
    return {
        "hidden_act": "silu",
        "head_dim": model.head_size,
        "attention_bias": False,
        "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.expert_ffn_hidden_size,
        "norm_topk_prob": moe.norm_topk_prob,
        "router_aux_loss_coef": moe.aux_loss_coeff,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": any(model.attention_windows),
        **uniform_window_entries(model),
    }


def model_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The experts, and the window."""
    moe = MoEConfig(
        num_experts=config["num_local_experts"],  # transformers' own name of num_experts
        top_k=config["num_experts_per_tok"],
        expert_ffn_hidden_size=config["moe_intermediate_size"],
        norm_topk_prob=config["norm_topk_prob"],
        aux_loss_coeff=config["router_aux_loss_coef"],
    )
    return {"moe": moe, **uniform_window_values(config)}


FAMILY = Family(
    model_type="qwen3_moe",
    title="Qwen3-MoE",
    architecture="Qwen3MoeForCausalLM",
    traits={
        "qk_norm": True,
        "window_sizes": ANY,
        "mixture": True,
        "score_function": "softmax",
        "norm_topk_prob": ANY,
    },
    only={"hidden_act": "silu", "attention_bias": False, "decoder_sparse_step": 1, "mlp_only_layers": []},
    config_entries=config_entries,
    model_values=model_values,
)
