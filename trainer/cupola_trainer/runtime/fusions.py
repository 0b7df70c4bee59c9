"""Which fused kernels of Megatron-Core are there. Nothing else asks."""

from typing import Any

import torch


def fusions() -> dict[str, Any]:
    """Megatron's settings for the fusions that work here: Transformer Engine's kernels where it is installed, and those
    that torch compiles on a GPU."""
    from megatron.core.extensions import transformer_engine as extension

    return {
        "apply_rope_fusion": True,  # Transformer Engine's, or ours
        "moe_permute_fusion": extension.fused_permute is not None,
        "moe_router_fusion": extension.fused_topk_with_score_function is not None,
        "bias_dropout_fusion": bool(torch.cuda.is_available()),
        # `optim` turns on what Transformer Engine has; Apex's needs all layers to take part
        "gradient_accumulation_fusion": False,
        # attention has kernels of its own
        "masked_softmax_fusion": False,
        # only for LayerNorm
        "persist_layer_norm": False,
    }
