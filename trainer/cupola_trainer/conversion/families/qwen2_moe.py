"""Qwen1.5-MoE and Qwen2-57B-A14B (Qwen2 technical report, section 2.2.2): routed experts and a gated shared one."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from cupola_trainer.config.model.architecture import ModelConfig, MoEConfig
from cupola_trainer.conversion.families import qwen2
from cupola_trainer.conversion.family import ANY, Family
from cupola_trainer.conversion.tensor_rules import ROUTER, Read


def config_entries(model: ModelConfig) -> dict[str, Any]:
    """Qwen2-MoE's entries of config.json."""
    moe = model.moe
    assert moe is not None
    return qwen2.config_entries(model) | {
        "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.expert_ffn_hidden_size,
        "shared_expert_intermediate_size": moe.shared_expert_ffn_hidden_size or 0,
        "norm_topk_prob": moe.norm_topk_prob,
        "router_aux_loss_coef": moe.aux_loss_coeff,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "qkv_bias": model.qkv_bias,
    }


def model_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The experts, and whether Q, K and V have a bias."""
    moe = MoEConfig(
        num_experts=config["num_experts"],
        top_k=config["num_experts_per_tok"],
        expert_ffn_hidden_size=config["moe_intermediate_size"],
        shared_expert_ffn_hidden_size=config["shared_expert_intermediate_size"] or None,
        norm_topk_prob=config["norm_topk_prob"],
        aux_loss_coeff=config["router_aux_loss_coef"],
    )
    return {"moe": moe, "qkv_bias": config["qkv_bias"]}


def empty_shared_experts(model: ModelConfig, read: Read) -> Iterator[tuple[str, Tensor]]:
    """A shared expert of width zero for models without one, since transformers always builds it."""
    if model.moe is None or model.moe.shared_expert_ffn_hidden_size:
        return
    for layer in range(model.num_layers):
        router = read(ROUTER, (layer,))
        base = f"model.layers.{layer}.mlp.shared_expert"
        yield f"{base}.gate_proj.weight", router.new_zeros(0, model.hidden_size)
        yield f"{base}.up_proj.weight", router.new_zeros(0, model.hidden_size)
        yield f"{base}.down_proj.weight", router.new_zeros(model.hidden_size, 0)
        yield f"{base}_gate.weight", router.new_zeros(1, model.hidden_size)


FAMILY = Family(
    model_type="qwen2_moe",
    title="Qwen2-MoE",
    architecture="Qwen2MoeForCausalLM",
    traits={
        "qkv_bias": ANY,
        "window_sizes": ANY,
        "windows_in_some_layers": ANY,
        "mixture": True,
        "score_function": "softmax",
        "norm_topk_prob": ANY,
        "shared_expert": ANY,
    },
    only={"hidden_act": "silu", "decoder_sparse_step": 1, "mlp_only_layers": []},
    config_entries=config_entries,
    model_values=model_values,
    padding=empty_shared_experts,
)
