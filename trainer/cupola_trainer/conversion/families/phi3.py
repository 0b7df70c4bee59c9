"""Phi-3 (Abdin et al. 2024): Llama's shape, with queries, keys and values in one tensor, and gate and up in another."""

from dataclasses import replace
from typing import Any

from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.conversion.family import ANY, Family
from cupola_trainer.conversion.position_entries import uniform_window_entries, uniform_window_values
from cupola_trainer.conversion.tensor_rules import FFN_IN, QKV, FusedQKV, Layout, Rule, Same, decoder_rules

LAYER = "model.layers.{layer}."


def config_entries(model: ModelConfig) -> dict[str, Any]:
    """Phi-3's entries of config.json."""
    return {
        "hidden_act": "silu",
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        **uniform_window_entries(model),
    }


def rules(model: ModelConfig) -> list[Rule]:
    """The usual rules, with the two fused tensors."""
    qkv = FusedQKV(model.num_attention_heads, model.num_query_groups)
    fused: dict[str, tuple[str, Layout]] = {
        QKV: (f"{LAYER}self_attn.qkv_proj.weight", qkv),
        FFN_IN: (f"{LAYER}mlp.gate_up_proj.weight", Same()),
    }
    return [
        replace(rule, names=(fused[rule.key][0],), layout=fused[rule.key][1]) if rule.key in fused else rule
        for rule in decoder_rules(model)
    ]


FAMILY = Family(
    model_type="phi3",
    title="Phi-3",
    architecture="Phi3ForCausalLM",
    traits={"window_sizes": ANY},
    only={"hidden_act": "silu", "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    config_entries=config_entries,
    model_values=uniform_window_values,
    rules=rules,
)
