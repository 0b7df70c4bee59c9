"""Decode one token per sequence with a minimal decoder layer.

Megatron's modules are made for training: around each operation they check for fusions, offloading and recomputation,
which takes longer than the operation itself on a single token. Here the same weights are applied in the same order
without these checks. Adapters, mixtures of experts and unusual norms and activations keep their modules; layers of
other implementations (Transformer Engine) are left to Megatron.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP
from torch import Tensor

from cupola_trainer.generation.cache import LayerCache, places
from cupola_trainer.models.attention.attend import Attend
from cupola_trainer.models.attention.layer_attention import LayerAttention, has_window, own_angles
from cupola_trainer.models.norm import JointNorm, TorchRMSNorm
from cupola_trainer.models.post_norm import AddNormed

Map = Callable[[Tensor], Tensor]
"""[b, in] -> [b, out]."""


class Turn:
    """RoPE at one position per row, for every layer: rotates the pairs (x[i], x[i + d/2]) of queries and keys.

    Values are rotated by 0, because one operation on the whole QKV output is cheaper than splitting it.
    """

    def __init__(self, angles: Tensor, each: int, dtype: torch.dtype) -> None:
        """
        Args:
            angles: radians [1, b, 1, d], each pair's angle twice.
            each: a group's number of queries, keys and values.
        """
        self.half = angles.size(-1) // 2
        angles = angles.transpose(0, 1).repeat(1, 1, each, 1)  # [b, 1, each, d]
        angles[:, :, -1] = 0
        self.cos, self.sin = angles.cos().to(dtype), angles.sin().to(dtype)
        self.sin[..., : self.half].neg_()

    def __call__(self, x: Tensor) -> Tensor:
        """[b, groups, each, d] -> same shape."""
        return (x * self.cos).addcmul_(x.roll(self.half, -1), self.sin)


class DecodingLayer:
    """One decoder layer with its cache."""

    def __init__(self, layer: Any, cache: LayerCache) -> None:
        attention = layer.self_attention
        self.cache, self.attend = cache, Attend.of(attention.config, attention.layer_number)
        self.groups: int = attention.num_query_groups_per_partition
        self.head_dim: int = attention.hidden_size_per_attention_head
        self.each: int = attention.num_attention_heads_per_partition // self.groups + 2
        """A group's number of queries, keys and values."""
        self.mix, self.project = _linear(attention.linear_qkv), _linear(attention.linear_proj)
        self.q_norm, self.k_norm = _norm(attention.q_layernorm), _norm(attention.k_layernorm)
        self.norms_heads: bool = attention.config.qk_layernorm or attention.config.joint_qk_norm
        self.local: bool = attention.config.local_rope and has_window(attention.config, attention.layer_number - 1)
        """Whether the layer has the RoPE of layers with a window."""
        self.norm, self.second_norm = _norm(layer.input_layernorm), _norm(layer.pre_mlp_layernorm)
        self.feed_forward = _feed_forward(layer.mlp)
        self.add, self.second_add = _add(layer.self_attn_bda), _add(layer.mlp_bda)

    def __call__(self, hidden: Tensor, turn: Turn, mask: Tensor | None, column: Tensor | None = None) -> Tensor:
        """Run the next token's hidden states through the layer, [b, h] -> [b, h].

        Args:
            mask: [b, 1, 1, columns so far], true where a row may attend; None for everywhere.
            column: [1], the token's, if the device is to know it: then the mask is of the cache's capacity.
        """
        rows = hidden.size(0)
        mixed = self.mix(self.norm(hidden)).view(rows, self.groups, self.each, self.head_dim)
        mixed = turn(self._normed(mixed) if self.norms_heads else mixed)
        both = mixed[:, :, -2:]
        keys, values = self.cache.append_one(both) if column is None else self.cache.append_at(both, column)
        where = places(mask) if mask is not None and self.attend.needs_positions else None
        read = self.attend.one(mixed[:, :, :-2], keys, values, mask, where)
        hidden = self.add(hidden, self.project(read.reshape(rows, -1)))
        return self.second_add(hidden, self.feed_forward(self.second_norm(hidden)))

    def _normed(self, mixed: Tensor) -> Tensor:
        """Normalize queries and keys: [b, groups, each, d] -> same shape."""
        queries, keys, values = mixed.split([self.each - 2, 1, 1], dim=2)
        normed = (norm(x.flatten(1, 2)).view_as(x) for norm, x in ((self.q_norm, queries), (self.k_norm, keys)))
        return torch.cat([*normed, values], dim=2)


def decoding_layers(layers: Sequence[Any], caches: Sequence[LayerCache]) -> list[DecodingLayer] | None:
    """This rank's layers with their caches; None if any layer is of an unsupported kind."""
    if not layers or not all(_is_supported(layer) for layer in layers):
        return None
    return [DecodingLayer(layer, cache) for layer, cache in zip(layers, caches, strict=True)]


def turns_of(angles: Tensor, layers: Sequence[DecodingLayer], dtype: torch.dtype) -> dict[bool, Turn]:
    """RoPE of these layers: of layers with a window if True, of the others if False."""
    one = angles.size(-1) == layers[0].head_dim
    parts = {False: angles} if one else {local: own_angles(angles, local) for local in (False, True)}
    return {local: Turn(part, layers[0].each, dtype) for local, part in parts.items()}


def _is_supported(layer: Any) -> bool:
    attention = layer.self_attention
    linear = (ColumnParallelLinear, RowParallelLinear)
    plain = isinstance(attention.linear_qkv, linear) and isinstance(attention.linear_proj, linear)
    norms = (attention.q_layernorm, attention.k_layernorm)
    known = all(norm is None or isinstance(norm, IdentityOp | TorchRMSNorm | JointNorm) for norm in norms)
    whole = attention.config.num_query_groups >= attention.tp_group.size()
    return type(attention) in (SelfAttention, LayerAttention) and plain and known and whole


def _linear(layer: Any) -> Map:
    if type(layer) is ColumnParallelLinear and not layer.gather_output:
        return lambda x: F.linear(x, layer.weight, layer.bias)
    if type(layer) is RowParallelLinear and layer.bias is None:
        if layer.tp_group.size() == 1:
            return lambda x: F.linear(x, layer.weight)
        return lambda x: reduce_from_tensor_model_parallel_region(F.linear(x, layer.weight), group=layer.tp_group)
    return lambda x: layer(x[None])[0][0]


def _norm(norm: Any) -> Map:
    if type(norm) is TorchRMSNorm and not norm.zero_centered:
        return lambda x: F.rms_norm(x, norm.normalized_shape, norm.weight, norm.eps)
    return norm  # type: ignore[no-any-return]


def _feed_forward(mlp: Any) -> Map:
    config = mlp.config
    if type(mlp) is not MLP or config.activation_func is not F.silu or not config.gated_linear_unit:
        return lambda x: mlp(x[None])[0][0]
    widen, narrow = _linear(mlp.linear_fc1), _linear(mlp.linear_fc2)

    def swiglu(x: Tensor) -> Tensor:
        gate, up = widen(x).chunk(2, dim=-1)
        return narrow(F.silu(gate).mul_(up))

    return swiglu


def _add(addition: Any) -> Callable[[Tensor, Tensor], Tensor]:
    if isinstance(addition, AddNormed):
        return lambda residual, x: residual + addition.norm(x)
    return lambda residual, x: residual + x
