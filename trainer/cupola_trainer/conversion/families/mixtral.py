"""Mixtral (Jiang et al. 2024): Mistral with a mixture whose top two probabilities sum to one."""

from collections.abc import Mapping
from typing import Any

from cupola_trainer.config.model.architecture import ModelConfig, MoEConfig
from cupola_trainer.conversion.families import mistral
from cupola_trainer.conversion.family import ANY, Family
from cupola_trainer.conversion.position_entries import uniform_window_values
from cupola_trainer.conversion.tensor_rules import EXPERT_IN, EXPERT_OUT, ROUTER, Rule, decoder_rules, renamed

EXPERT = "model.layers.{layer}.block_sparse_moe.experts.{expert}."
NAMES = {
    ROUTER: ("model.layers.{layer}.block_sparse_moe.gate.weight",),
    EXPERT_IN: (f"{EXPERT}w1.weight", f"{EXPERT}w3.weight"),
    EXPERT_OUT: (f"{EXPERT}w2.weight",),
}


def config_entries(model: ModelConfig) -> dict[str, Any]:
    """Mixtral's entries of config.json; its intermediate size is an expert's."""
    moe = model.moe
    assert moe is not None
    return mistral.config_entries(model) | {
        "intermediate_size": moe.expert_ffn_hidden_size,
        "num_local_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "router_aux_loss_coef": moe.aux_loss_coeff,
        "router_jitter_noise": 0.0,
    }


def model_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The experts, and the window."""
    moe = MoEConfig(
        num_experts=config["num_local_experts"],
        top_k=config["num_experts_per_tok"],
        expert_ffn_hidden_size=config["intermediate_size"],
        norm_topk_prob=True,
        aux_loss_coeff=config["router_aux_loss_coef"],
    )
    return {"moe": moe, **uniform_window_values(config)}


def rules(model: ModelConfig) -> list[Rule]:
    """The usual rules, with Mixtral's names of router and experts."""
    return renamed(decoder_rules(model), NAMES)


FAMILY = Family(
    model_type="mixtral",
    title="Mixtral",
    architecture="MixtralForCausalLM",
    traits={"window_sizes": ANY, "mixture": True, "score_function": "softmax", "norm_topk_prob": True},
    only={"hidden_act": "silu", "router_jitter_noise": 0.0},
    config_entries=config_entries,
    model_values=model_values,
    rules=rules,
)
