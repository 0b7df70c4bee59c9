"""The modules of a decoder layer: Transformer Engine's if installed, plain torch's otherwise.

Both use the same checkpoint names, so a checkpoint written with one loads with the other.
"""

import torch
from megatron.core.extensions.transformer_engine import HAVE_TE
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_with_transformer_engine_spec,
    get_mlp_module_spec_for_backend,
)
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoESubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from cupola_trainer import runtime
from cupola_trainer.megatron.versions import building, submodules_of
from cupola_trainer.models.attention.layer_attention import LayerAttention
from cupola_trainer.models.attention.torch_attention import TorchAttention
from cupola_trainer.models.decoder_config import DecoderConfig
from cupola_trainer.models.experts import Experts
from cupola_trainer.models.grouped_experts import GroupedExperts
from cupola_trainer.models.norm import JointNorm, TorchRMSNorm
from cupola_trainer.models.post_norm import with_post_norms
from cupola_trainer.models.router import Router

FUSED_DTYPES: tuple[torch.dtype, ...] = (torch.float16, torch.bfloat16)
"""Dtypes of Transformer Engine's fused attention. Its other kernel keeps all scores, and takes neither several texts in
a row nor context parallelism."""

FUSED_HEAD_SIZES = range(8, 129, 8)
"""Sizes of a head that its fused attention supports on every GPU since Hopper."""


def decoder(config: DecoderConfig, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """Specs of this rank's pipeline stage: its layers and the final norm."""
    fused = _uses_transformer_engine(config)
    layer = _transformer_engine_layer(config) if fused else _torch_layer(config)
    norm = _transformer_engine_norm() if fused else TorchRMSNorm
    if config.local_rope:
        layer.submodules.self_attention.module = LayerAttention
    if config.post_norm:
        layer = with_post_norms(layer, config, norm)
    if isinstance(mixture := submodules_of(layer.submodules.mlp), MoESubmodules):
        mixture.router = Router
        mixture.experts = building(mixture.experts, SequentialMLP, _experts(config))
    return TransformerBlockSubmodules(
        layer_specs=[layer] * get_num_layers_to_build(config, vp_stage=vp_stage), layer_norm=norm
    )


def _experts(config: DecoderConfig) -> type:
    """Stacked where torch has kernels for it. Adapters and measurements need each expert's own layers."""
    stacked = runtime.has_grouped_products(config.params_dtype) and not config.plain_layers
    return GroupedExperts if stacked else Experts


def _uses_transformer_engine(config: DecoderConfig) -> bool:
    """Whether it is installed and wanted. On the meta device, for planning, Megatron cannot create its layers."""
    own = config.plain_layers or config.joint_qk_norm or not config.pre_norm
    return HAVE_TE and not own and torch.get_default_device().type != "meta"


def _transformer_engine_norm() -> type:
    from megatron.core.extensions.transformer_engine import TENorm

    norm: type = TENorm
    return norm


def _transformer_engine_layer(config: DecoderConfig) -> ModuleSpec:
    spec = get_gpt_layer_with_transformer_engine_spec(
        num_experts=config.num_moe_experts, moe_grouped_gemm=True, qk_layernorm=config.qk_layernorm
    )
    spec.submodules.self_attention.submodules.core_attention = _attention(config)
    if config.num_moe_experts:
        spec.submodules.sharded_state_dict_keys_map = {"pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_"}
    return spec


def _attention(config: DecoderConfig) -> type:
    """Transformer Engine's attention where it has a fused kernel for all that the model needs."""
    own = (config.attention_windows, config.attn_logit_softcapping, config.dual_chunk, config.length_scaling)
    fused = config.params_dtype in FUSED_DTYPES and config.kv_channels in FUSED_HEAD_SIZES
    if any(own) or not fused:  # it supports a single window and none of the other features
        return TorchAttention
    from cupola_trainer.models.attention.transformer_engine import PackedAttention

    return PackedAttention


def _head_norm(config: DecoderConfig, heads: int) -> type | ModuleSpec:
    """The norm of queries or keys, of which there are `heads`."""
    if config.joint_qk_norm:
        return ModuleSpec(module=JointNorm, params={"heads": heads})
    return TorchRMSNorm if config.qk_layernorm else IdentityOp


def _torch_layer(config: DecoderConfig) -> ModuleSpec:
    norm = TorchRMSNorm if config.pre_norm else IdentityOp
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=ColumnParallelLinear,
                    core_attention=TorchAttention,
                    linear_proj=RowParallelLinear,
                    q_layernorm=_head_norm(config, config.num_attention_heads),
                    k_layernorm=_head_norm(config, config.num_query_groups),
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=norm,
            mlp=get_mlp_module_spec_for_backend(LocalSpecProvider(), num_experts=config.num_moe_experts),
            mlp_bda=get_bias_dropout_add,
            sharded_state_dict_keys_map={
                "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
                "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
            },
        ),
    )
