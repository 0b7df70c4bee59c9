"""From a ModelConfig to Megatron's GPTModel: the families, their layers, their initial weights."""

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from cupola_trainer import runtime
from cupola_trainer.config import ModelConfig, ParallelConfig
from cupola_trainer.models import qwen2, qwen2_moe
from cupola_trainer.models.initialization import initialize
from cupola_trainer.models.specs import decoder

__all__ = ["build", "parameter_count", "transformer_config"]


def build(model: ModelConfig, parallel: ParallelConfig, *, seed: int = 0) -> list[GPTModel]:
    """This rank's part of the model on its device: one chunk, or one per virtual pipeline stage.

    `runtime.start` comes first. Initial weights depend on the seed alone, whatever the layout.
    """
    config = transformer_config(model, parallel)
    chunks = [_chunk(model, config, stage) for stage in range(parallel.vp or 1)]
    initialize(chunks, model, seed)
    return [chunk.to(runtime.device()) for chunk in chunks]


def transformer_config(model: ModelConfig, parallel: ParallelConfig) -> TransformerConfig:
    """Megatron's whole description of a model in a layout."""
    family = qwen2_moe if model.moe else qwen2
    return TransformerConfig(**family.settings(model, parallel), **_execution(parallel))


def _execution(parallel: ParallelConfig) -> dict[str, Any]:
    """How any family is laid out and computed."""
    dtype = runtime.dtype()
    return {
        "tensor_model_parallel_size": parallel.tp,
        "pipeline_model_parallel_size": parallel.pp,
        "virtual_pipeline_model_parallel_size": parallel.vp,
        "context_parallel_size": parallel.cp,
        "sequence_parallel": parallel.sp,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "bf16": dtype is torch.bfloat16,
        "calculate_per_token_loss": True,
        # the interleaved schedule's gradients are wrong with batched point-to-point calls over gloo
        "overlap_p2p_comm": parallel.vp is not None,
        "batch_p2p_comm": parallel.vp is None,
        # marks which parameters are sharded (the gradient norm depends on it); the numbers are `initialize`'s
        "use_cpu_initialization": True,
        "init_method": _left_to_initialize,
        "output_layer_init_method": _left_to_initialize,
        "embedding_init_method": _left_to_initialize,
        # these fusions need Apex or a compiler
        "gradient_accumulation_fusion": False,
        "masked_softmax_fusion": False,
        "bias_activation_fusion": False,
        "bias_dropout_fusion": False,
        "apply_rope_fusion": False,
        "persist_layer_norm": False,
    }


def _left_to_initialize(weight: Tensor) -> Tensor:
    return weight


def _chunk(model: ModelConfig, config: TransformerConfig, stage: int) -> GPTModel:
    vp_stage = stage if config.virtual_pipeline_model_parallel_size else None
    return GPTModel(
        config,
        decoder(config, vp_stage),
        vocab_size=model.vocab_size,
        max_sequence_length=model.max_position_embeddings,
        position_embedding_type="rope",
        rotary_base=model.rope_theta,
        share_embeddings_and_output_weights=model.tie_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
        vp_stage=vp_stage,
    )


def parameter_count(model: ModelConfig) -> int:
    """Parameters of the whole model, over all ranks; tied embeddings count once."""
    h, head_dim = model.hidden_size, model.hidden_size // model.num_attention_heads
    qkv = (model.num_attention_heads + 2 * model.num_query_groups) * head_dim
    layer = h * qkv + (qkv if model.qkv_bias else 0) + h * h + 2 * h
    if model.moe:
        layer += model.moe.num_experts * (h + 3 * h * model.moe.expert_ffn_hidden_size)
        if model.moe.shared_expert_ffn_hidden_size:
            layer += h + 3 * h * model.moe.shared_expert_ffn_hidden_size
    else:
        layer += 3 * h * model.ffn_hidden_size
    return model.num_layers * layer + h + model.vocab_size * h * (1 if model.tie_embeddings else 2)
