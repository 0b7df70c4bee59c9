"""Published config.json files, including entries that only other readers need, match the presets."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from cupola_platform.errors import ConfigError
from cupola_trainer.config.model.positions import DualChunk, LengthScaling, YarnRope
from cupola_trainer.config.model.presets import PRESETS
from cupola_trainer.conversion.config_json import from_config

QWEN: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
    "hidden_act": "silu", "initializer_range": 0.02, "max_position_embeddings": 32768, "max_window_layers": 28,
    "model_type": "qwen2", "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
    "hidden_size": 3584, "intermediate_size": 18944, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 131072, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.43.1",
    "use_cache": True, "use_sliding_window": False, "vocab_size": 152064,
}  # fmt: skip
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
    "eos_token_id": 128001, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 128256,
}  # fmt: skip
GEMMA: dict[str, Any] = {
    "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
    "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "initializer_range": 0.02, "intermediate_size": 9216,
    "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 8, "num_hidden_layers": 26,
    "num_key_value_heads": 4, "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0, "sliding_window": 4096, "torch_dtype": "float32", "use_cache": True, "vocab_size": 256000,
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "qwen2.5-7b": QWEN,
    "qwen2-57b-a14b": QWEN | {
        "architectures": ["Qwen2MoeForCausalLM"], "decoder_sparse_step": 1, "model_type": "qwen2_moe",
        "moe_intermediate_size": 2560, "norm_topk_prob": False, "num_experts": 64, "num_experts_per_tok": 8,
        "output_router_logits": False, "router_aux_loss_coef": 0.001, "shared_expert_intermediate_size": 20480,
        "vocab_size": 151936,
    },
    "llama-3.1-8b": LLAMA,
    "llama-3.2-1b": LLAMA | {
        "head_dim": 64, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "rope_scaling": LLAMA["rope_scaling"] | {"factor": 32.0}, "tie_word_embeddings": True,
    },
    "gemma-2-2b": GEMMA,
    "gemma-2-27b": GEMMA | {
        "_attn_implementation": "eager", "head_dim": 128, "hidden_size": 4608, "intermediate_size": 36864,
        "num_attention_heads": 32, "num_hidden_layers": 46, "num_key_value_heads": 16, "query_pre_attn_scalar": 144,
        "sliding_window_size": 4096,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration_matches_its_preset_and_is_not_modified(name: str) -> None:
    given = deepcopy(PUBLISHED[name])
    assert from_config(given) == PRESETS[name]
    assert given == PUBLISHED[name]


def test_yarn_is_read_as_qwen_publishes_it() -> None:
    """The config.json entries that Qwen2.5's model cards recommend for 131,072 tokens."""
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
    model = from_config(QWEN | {"rope_scaling": scaling})
    assert model.rope_scaling == YarnRope(factor=4.0, original_max_position_embeddings=32_768)
    assert (model.max_position_embeddings, model.rope_theta) == (131_072, 1_000_000.0)


def test_dual_chunks_are_read_as_qwen_publishes_them() -> None:
    """The entries of Qwen2.5-7B-Instruct-1M."""
    chunks = {"chunk_size": 262144, "local_size": 8192, "original_max_position_embeddings": 262144}
    config = QWEN | {
        "dual_chunk_attention_config": chunks, "max_position_embeddings": 1010000, "rope_theta": 10000000.0,
        "sliding_window": 1010000,
    }  # fmt: skip
    assert from_config(config) == replace(
        PRESETS["qwen2.5-7b"],
        max_position_embeddings=1_010_000,
        rope_theta=1e7,
        dual_chunk=DualChunk(chunk_size=262_144, local_window=8192),
        length_scaling=LengthScaling(type="yarn", original_max_position_embeddings=262_144),
    )


def test_quantized_weights_are_refused_before_reading_tensors() -> None:
    with pytest.raises(
        ConfigError, match=r"quantization_config=\{'quant_method': 'gptq'\} is not supported\. Only None is"
    ):
        from_config(QWEN | {"quantization_config": {"quant_method": "gptq"}})
