"""Build Megatron's GPTModel, with its initial weights, from a ModelConfig."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cupola_trainer import runtime
from cupola_trainer.config import Fp8Config, LayoutConfig, ModelConfig
from cupola_trainer.models.decoder_config import DecoderConfig
from cupola_trainer.models.hooks import gather_overlapped_experts
from cupola_trainer.models.initialization import initialize
from cupola_trainer.models.language_model import LanguageModel
from cupola_trainer.models.precision import fp8_settings
from cupola_trainer.models.settings import settings
from cupola_trainer.runtime.fusions import fusions

__all__ = ["build", "transformer_config"]


RECOMPUTE: dict[str, dict[str, Any]] = {
    "none": {},
    "selective": {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}


def build(
    model: ModelConfig,
    layout: LayoutConfig,
    *,
    seed: int | None = 0,
    dtype: torch.dtype | None = None,
    plain_layers: bool = False,
    fp8: Fp8Config | None = None,
) -> list[LanguageModel]:
    """This rank's part of the model on its device: one chunk, or one per virtual pipeline stage.

    Call `runtime.start` first. Initial weights depend on the seed alone, not on the layout.

    Args:
        seed: None leaves the weights uninitialized, for loading.
        dtype: dtype of the weights; None for the runtime's.
        plain_layers: use torch's layers even where Transformer Engine is installed: its own take no LoRA adapters, and
            do not show what a norm gives a linear layer.
        fp8: how to multiply in FP8, in training; None for not at all.
    """
    config = transformer_config(model, layout, dtype, fp8)
    config.plain_layers = plain_layers
    stages = range(layout.vp) if layout.vp else [None]
    chunks = [LanguageModel(model, config, stage) for stage in stages]
    if runtime.expert_tensor_parallel_size(layout) != layout.tp:
        _reduce_experts_separately(chunks)
    if config.moe_shared_expert_overlap:
        gather_overlapped_experts(chunks)
    if seed is not None:
        initialize(chunks, model, seed)
    on_meta = next(chunks[0].parameters()).is_meta  # under `torch.device("meta")`, for planning
    return chunks if on_meta else [chunk.to(runtime.device()) for chunk in chunks]


def _reduce_experts_separately(chunks: Sequence[torch.nn.Module]) -> None:
    """Reduce experts' gradients over their own replicas, which differ from the dense weights'.

    Megatron marks experts this way only for ep > 1. With a tensor-parallel size that differs from the dense weights',
    it would reduce over the wrong ranks.
    """
    for chunk in chunks:
        for name, weight in chunk.named_parameters():
            if ".experts." in name:
                weight.allreduce = False  # type: ignore[attr-defined]


def transformer_config(
    model: ModelConfig, layout: LayoutConfig, dtype: torch.dtype | None = None, fp8: Fp8Config | None = None
) -> DecoderConfig:
    """Megatron's configuration of a model in a layout; `dtype` defaults to the runtime's."""
    execution = _execution(layout, dtype or runtime.dtype(), model.num_layers)
    return DecoderConfig(**settings(model, layout), **execution, **fp8_settings(fp8))


def _execution(layout: LayoutConfig, dtype: torch.dtype, layers: int) -> dict[str, Any]:
    """The layout and execution part of the configuration."""
    return {
        "tensor_model_parallel_size": layout.tp,
        "pipeline_model_parallel_size": layout.pp,
        "virtual_pipeline_model_parallel_size": layout.vp,
        "context_parallel_size": layout.cp,
        "sequence_parallel": layout.sp,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "bf16": dtype is torch.bfloat16,
        "calculate_per_token_loss": True,
        **RECOMPUTE[layout.recompute],
        "cpu_offloading": layout.offload_activations,
        "cpu_offloading_num_layers": layers - 1 if layout.offload_activations else 0,
        "cpu_offloading_weights": False,
        # the interleaved schedule computes wrong gradients with batched point-to-point calls over gloo
        "overlap_p2p_comm": layout.vp is not None,
        "batch_p2p_comm": layout.vp is None,
        # marks which parameters are sharded, which the gradient norm depends on; `initialize` sets the values
        "use_cpu_initialization": True,
        "init_method": _uninitialized,
        "output_layer_init_method": _uninitialized,
        "embedding_init_method": _uninitialized,
        **fusions(),
    }


def _uninitialized(weight: Tensor) -> Tensor:
    return weight
