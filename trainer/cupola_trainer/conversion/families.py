"""A ModelConfig as one of transformers' families, and its config.json. `reading` is the way back."""

from typing import Any

from cupola_platform.errors import ConfigError
from cupola_trainer.architecture import ModelConfig
from cupola_trainer.positions import DynamicRope

QWEN: dict[str, Any] = {
    "activation": "silu", "post_norm": False, "zero_centered_norm": False, "scale_embeddings": False,
    "query_pre_attn_scalar": None, "attn_logit_softcapping": None, "final_logit_softcapping": None,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": QWEN | {"qkv_bias": True, "mixture": False},
    "qwen2_moe": QWEN | {"mixture": True, "score_function": "softmax"},
    "llama": QWEN | {"qkv_bias": False, "mixture": False, "windows": 0},
    "gemma2": {
        "activation": "gelu_tanh", "post_norm": True, "zero_centered_norm": True, "scale_embeddings": True,
        "qkv_bias": False, "mixture": False,
    },
}  # fmt: skip
"""What a ModelConfig must be for transformers to have it as this family."""

CLASSES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "llama": "LlamaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
}
SEQUENCE = "ForSequenceClassification"
"""With one label, transformers' form of a model whose head is scalar."""
ROPES = {"default": (), "linear": ("factor",), "dynamic": ("factor",),
         "yarn": ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor"),
         "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor")}  # fmt: skip
"""RoPE's types and their entries in `rope_parameters`, in both configurations alike."""


def family(model: ModelConfig) -> str:
    """Which of transformers' families a model is.

    Raises:
        ConfigError: none of them; names what the nearest one lacks.
    """
    traits = _traits(model)
    missed = {
        name: [trait for trait, value in wanted.items() if traits[trait] != value] for name, wanted in FAMILIES.items()
    }
    nearest = min(missed, key=lambda name: len(missed[name]))
    if missed[nearest]:
        wrong = ", ".join(f"{trait}={traits[trait]!r}" for trait in missed[nearest])
        raise ConfigError(f"transformers has no such model: its {nearest} cannot have {wrong}. It cannot be exported.")
    if model.length_scaling and (model.length_scaling.type != "yarn" or not model.dual_chunk):
        raise ConfigError(
            f"config.json has no words for length_scaling of type {model.length_scaling.type} "
            f"{'with' if model.dual_chunk else 'without'} dual_chunk. It cannot be exported."
        )
    if traits["windows"] > 1:
        raise ConfigError("transformers has one window for all layers that have any; this model has several sizes.")
    return nearest


def _traits(model: ModelConfig) -> dict[str, Any]:
    traits: dict[str, Any] = {name: getattr(model, name) for name in (*QWEN, "qkv_bias")}
    traits["mixture"] = model.moe is not None
    traits["score_function"] = model.moe.score_function if model.moe else None
    traits["windows"] = len({window for window in model.attention_windows if window})
    return traits


def to_config(
    model: ModelConfig, *, dtype: str, bos: int | None, eos: int | list[int] | None, pad: int | None
) -> dict[str, Any]:
    """A transformers config.json for a model. `vocab_size` is the embedding's rows, padding included.

    RoPE's base is given both ways: `rope_parameters` for transformers 5, `rope_theta` for readers of version 4.

    Raises:
        ConfigError: transformers has no such model.
    """
    name = family(model)
    longest = model.max_position_embeddings
    if isinstance(model.rope_scaling, DynamicRope):
        longest = model.rope_scaling.original_max_position_embeddings
    config: dict[str, Any] = {
        "architectures": [CLASSES[name].replace("ForCausalLM", SEQUENCE) if model.is_scalar else CLASSES[name]],
        "model_type": name,
        "dtype": dtype,
        "torch_dtype": dtype,
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_query_groups,
        "max_position_embeddings": longest,
        "rms_norm_eps": model.rms_norm_eps,
        "rope_theta": model.rope_theta,
        "rope_parameters": _rope_parameters(model),
        "tie_word_embeddings": model.tie_embeddings,
        "initializer_range": model.init_std,
        "attention_dropout": 0.0,
        "use_cache": True,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
    }
    if model.head_dim:  # a field of Llama's and Gemma's, and read of Qwen's where it is given
        config["head_dim"] = model.head_dim
    own = {"qwen2": _windows, "qwen2_moe": _mixture, "llama": _llama, "gemma2": _gemma2}
    scalar = {"id2label": {"0": "reward"}, "label2id": {"reward": 0}} if model.is_scalar else {}
    return config | scalar | own[name](model) | _dual_chunk(model)


def _rope_parameters(model: ModelConfig) -> dict[str, Any]:
    scaling = model.rope_scaling
    parameters: dict[str, Any] = {"rope_type": scaling.type if scaling else "default", "rope_theta": model.rope_theta}
    entries = {name: getattr(scaling, name) for name in ROPES[parameters["rope_type"]]}
    return parameters | {name: value for name, value in entries.items() if value is not None}


def _dual_chunk(model: ModelConfig) -> dict[str, Any]:
    """As Qwen2.5-1M's config.json has it: vLLM reads it; transformers does not, and attends plainly."""
    chunk, scaling = model.dual_chunk, model.length_scaling
    if chunk is None:
        return {}
    entries = {"chunk_size": chunk.chunk_size, "local_size": chunk.local_window}
    grown = {"original_max_position_embeddings": scaling.original_max_position_embeddings} if scaling else {}
    return {"dual_chunk_attention_config": entries | grown}


def _windows(model: ModelConfig) -> dict[str, Any]:
    windows = [model.window(layer) for layer in range(model.num_layers)]
    return {
        "hidden_act": "silu",
        "use_sliding_window": any(windows),
        "sliding_window": next(filter(None, windows), None),
        "max_window_layers": next((layer for layer, window in enumerate(windows) if window), model.num_layers),
        "layer_types": ["sliding_attention" if window else "full_attention" for window in windows],
    }


def _mixture(model: ModelConfig) -> dict[str, Any]:
    assert model.moe is not None
    return _windows(model) | {
        "num_experts": model.moe.num_experts,
        "num_experts_per_tok": model.moe.top_k,
        "moe_intermediate_size": model.moe.expert_ffn_hidden_size,
        "shared_expert_intermediate_size": model.moe.shared_expert_ffn_hidden_size or 0,
        "norm_topk_prob": model.moe.norm_topk_prob,
        "router_aux_loss_coef": model.moe.aux_loss_coeff,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "qkv_bias": model.qkv_bias,
    }


def _llama(model: ModelConfig) -> dict[str, Any]:
    return {"hidden_act": "silu", "head_dim": model.head_size, "attention_bias": False, "mlp_bias": False}


def _gemma2(model: ModelConfig) -> dict[str, Any]:
    scalar = model.query_pre_attn_scalar or model.head_size
    if scalar != int(scalar):
        raise ConfigError(f"query_pre_attn_scalar={scalar}: transformers' Gemma 2 takes whole numbers only.")
    windows = _windows(model)
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": model.head_size,
        "attention_bias": False,
        "query_pre_attn_scalar": int(scalar),
        "attn_logit_softcapping": model.attn_logit_softcapping,
        "final_logit_softcapping": model.final_logit_softcapping,
        "sliding_window": windows["sliding_window"],
        "layer_types": windows["layer_types"],
    }
