"""Gemma 2's second pair of norms: on the outputs of attention and FFN, before the residual is added."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from cupola_trainer.models.decoder_config import DecoderConfig

KEYS = {"self_attn_bda.norm.": "post_attention_norm.", "mlp_bda.norm.": "post_mlp_norm."}
"""Names of the norms in checkpoints."""

Add = Callable[[tuple[Tensor, Tensor | None], Tensor, float], Tensor]


class PostNormLayer(TransformerLayer):
    """A layer whose residual additions are modules with weights."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.bias_dropout_add_exec_handler = nullcontext  # Megatron's would enable gradients even in generation


class AddNormed(torch.nn.Module):
    """Normalize and add the residual, instead of Megatron's bias-dropout-add: our models have no bias or dropout
    here."""

    def __init__(self, config: DecoderConfig, norm: Any) -> None:
        super().__init__()
        self.norm = norm(config=config, hidden_size=config.hidden_size, eps=config.layernorm_epsilon)

    def forward(self, training: bool, fused: bool) -> Add:
        return lambda output_with_bias, residual, dropout: residual + self.norm(output_with_bias[0])


def with_post_norms(layer: ModuleSpec, config: DecoderConfig, norm: Any) -> ModuleSpec:
    """The layer with a norm of the given kind in both residual additions."""
    addition = ModuleSpec(module=AddNormed, params={"config": config, "norm": norm})
    layer.module = PostNormLayer
    layer.submodules.self_attn_bda = layer.submodules.mlp_bda = addition
    layer.submodules.sharded_state_dict_keys_map |= KEYS
    return layer
