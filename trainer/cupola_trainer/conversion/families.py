"""config.json <-> ModelConfig, for the families that transformers knows and we build: Qwen2 and Qwen2-MoE."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from cupola_platform.errors import ConfigError
from cupola_trainer.config import ModelConfig, MoEConfig
from cupola_trainer.models import parameter_count

FAMILIES = ("qwen2", "qwen2_moe")


def to_config(model: ModelConfig, *, dtype: str, bos: int | None, eos: int | None, pad: int | None) -> dict[str, Any]:
    """A transformers config.json for a model. `vocab_size` is the embedding's rows, padding included.

    RoPE's base is given both ways: `rope_parameters` for transformers 5, `rope_theta` for readers of version 4.

    Raises:
        ConfigError: transformers' family has no such model.
    """
    _check_expressible(model)
    config: dict[str, Any] = {
        "architectures": ["Qwen2MoeForCausalLM" if model.moe else "Qwen2ForCausalLM"],
        "model_type": "qwen2_moe" if model.moe else "qwen2",
        "dtype": dtype,
        "torch_dtype": dtype,
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_query_groups,
        "hidden_act": "silu",
        "max_position_embeddings": model.max_position_embeddings,
        "rms_norm_eps": model.rms_norm_eps,
        "rope_theta": model.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "tie_word_embeddings": model.tie_embeddings,
        "initializer_range": model.init_std,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "use_cache": True,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
    }
    return config | _moe_entries(model)


def _moe_entries(model: ModelConfig) -> dict[str, Any]:
    if model.moe is None:
        return {}
    return {
        "num_experts": model.moe.num_experts,
        "num_experts_per_tok": model.moe.top_k,
        "moe_intermediate_size": model.moe.expert_ffn_hidden_size,
        "shared_expert_intermediate_size": model.moe.shared_expert_ffn_hidden_size,
        "norm_topk_prob": model.moe.norm_topk_prob,
        "router_aux_loss_coef": model.moe.aux_loss_coeff,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "qkv_bias": model.qkv_bias,
    }


def _check_expressible(model: ModelConfig) -> None:
    if model.moe and model.moe.shared_expert_ffn_hidden_size is None:
        raise ConfigError(
            "A Qwen2-MoE of transformers always has a shared expert; this model has none. It cannot be exported."
        )
    if not model.moe and not model.qkv_bias:
        raise ConfigError("A Qwen2 of transformers always has biases on Q, K and V; qkv_bias=false cannot be exported.")


def from_config(config: Mapping[str, Any]) -> ModelConfig:
    """The model that a config.json of transformers describes. Entries that it leaves out get transformers' defaults.

    Raises:
        ConfigError: another architecture, or a variant of one that we do not build; names the entry.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ConfigError(f"model_type={family!r} is not known. Known architectures: {', '.join(FAMILIES)}.")
    full = _with_defaults(config)
    _check_supported(full)
    moe = None
    if family == "qwen2_moe":
        moe = {
            "num_experts": full["num_experts"],
            "top_k": full["num_experts_per_tok"],
            "expert_ffn_hidden_size": full["moe_intermediate_size"],
            "shared_expert_ffn_hidden_size": full["shared_expert_intermediate_size"],
            "norm_topk_prob": full["norm_topk_prob"],
            "aux_loss_coeff": full["router_aux_loss_coef"],
        }
    try:
        return ModelConfig(
            vocab_size=full["vocab_size"],
            hidden_size=full["hidden_size"],
            num_layers=full["num_hidden_layers"],
            num_attention_heads=full["num_attention_heads"],
            num_query_groups=full["num_key_value_heads"],
            ffn_hidden_size=full["intermediate_size"],
            max_position_embeddings=full["max_position_embeddings"],
            rope_theta=full["rope_parameters"]["rope_theta"],
            rms_norm_eps=full["rms_norm_eps"],
            qkv_bias=full.get("qkv_bias", True),
            tie_embeddings=full["tie_word_embeddings"],
            init_std=full["initializer_range"],
            moe=MoEConfig(**moe) if moe else None,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"config.json: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    from transformers import AutoConfig  # seconds long

    given = {key: value for key, value in config.items() if key != "model_type"}
    try:
        full: dict[str, Any] = AutoConfig.for_model(config["model_type"], **given).to_dict()
    except Exception as error:  # transformers' strict configs raise types of their own
        raise ConfigError(f"config.json is not one that transformers takes: {error}") from error
    return full


def _check_supported(config: Mapping[str, Any]) -> None:
    head_dim = config["hidden_size"] // max(config["num_attention_heads"], 1)
    supported = {
        "hidden_act": "silu",
        "use_sliding_window": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "head_dim": head_dim,
    }
    for key, value in supported.items():
        if config.get(key, value) != value:
            raise ConfigError(f"config.json: {key}={config[key]!r} is not supported. Only {value!r} is.")
    rope = config["rope_parameters"]["rope_type"]
    if rope != "default":
        raise ConfigError(f"config.json: RoPE of type {rope!r} is not supported. Only 'default' is.")


def active_parameters(model: ModelConfig) -> int:
    """Parameters that one token meets: all but the experts that it does not visit."""
    total = parameter_count(model)
    if model.moe is None:
        return total
    expert = 3 * model.hidden_size * model.moe.expert_ffn_hidden_size
    return total - model.num_layers * (model.moe.num_experts - model.moe.top_k) * expert
