"""Rules that map checkpoint tensors to transformers' tensors.

A checkpoint key names a tensor of all layers (and all experts), stacked in front: "decoder.layers.mlp.router.weight" is
[layers, experts, hidden]. transformers has one tensor per layer (and expert).
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.models.output import SCORE

Read = Callable[[str, tuple[int, ...]], Tensor]
"""Returns a checkpoint tensor by key and index into its leading (layer, expert) dimensions."""

LAYERS = "decoder.layers."
EMBEDDING = "embedding.word_embeddings.weight"
ATTENTION_NORM = f"{LAYERS}self_attention.linear_qkv.layer_norm_weight"
QKV, QKV_BIAS = f"{LAYERS}self_attention.linear_qkv.weight", f"{LAYERS}self_attention.linear_qkv.bias"
Q_NORM, K_NORM = f"{LAYERS}self_attention.q_layernorm.weight", f"{LAYERS}self_attention.k_layernorm.weight"
ATTENTION_OUTPUT = f"{LAYERS}self_attention.linear_proj.weight"
POST_ATTENTION_NORM = f"{LAYERS}post_attention_norm.weight"
MLP_NORM = f"{LAYERS}mlp.linear_fc1.layer_norm_weight"
FFN_IN, FFN_OUT = f"{LAYERS}mlp.linear_fc1.weight", f"{LAYERS}mlp.linear_fc2.weight"
EXPERT_IN, EXPERT_OUT = (f"{LAYERS}mlp.experts.experts.linear_{part}.weight" for part in ("fc1", "fc2"))
ROUTER = f"{LAYERS}mlp.router.weight"
SHARED_GATE = f"{LAYERS}mlp.shared_experts.gate_weight"
POST_MLP_NORM = f"{LAYERS}post_mlp_norm.weight"
FINAL_NORM = "decoder.final_layernorm.weight"
OUTPUT = "output_layer.weight"
"""Checkpoint keys, by which a family can rename tensors."""


class Layout(Protocol):
    """How transformers' tensors combine into one checkpoint tensor (of one layer and expert), and back."""

    def join(self, parts: Sequence[Tensor]) -> Tensor: ...

    def split(self, whole: Tensor) -> Sequence[Tensor]: ...


class Same:
    """Identical in both."""

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return parts[0]

    def split(self, whole: Tensor) -> Sequence[Tensor]:
        return [whole]


class Halves:
    """[gate; up] along the first dimension."""

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts))

    def split(self, whole: Tensor) -> Sequence[Tensor]:
        return list(whole.chunk(2))


@dataclass(frozen=True)
class GroupedQKV:
    """Per key-value group: query heads, key head, value head. transformers keeps Q, K and V separate.

    Rows: groups * (heads / groups + 2) * head_dim.
    """

    heads: int
    groups: int

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        rest = parts[0].shape[1:]  # [H] for a weight, [] for a bias
        return torch.cat([part.reshape(self.groups, -1, *rest) for part in parts], dim=1).reshape(-1, *rest)

    def split(self, whole: Tensor) -> Sequence[Tensor]:
        rest = whole.shape[1:]
        rows = whole.size(0) // self.groups  # per group
        head_dim = rows // (self.heads // self.groups + 2)
        parts = whole.reshape(self.groups, rows, *rest).split([rows - 2 * head_dim, head_dim, head_dim], dim=1)
        return [part.reshape(-1, *rest) for part in parts]


class FusedQKV(GroupedQKV):
    """The same for families that keep all queries, then all keys, then all values in one tensor."""

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        head_dim = parts[0].size(0) // (self.heads + 2 * self.groups)
        return super().join(parts[0].split([self.heads * head_dim, *[self.groups * head_dim] * 2]))

    def split(self, whole: Tensor) -> Sequence[Tensor]:
        return [torch.cat(list(super().split(whole)))]


@dataclass(frozen=True)
class Rule:
    """One checkpoint tensor, and the transformers tensors with the same values."""

    key: str
    names: tuple[str, ...]
    """May contain {layer} and {expert}, which the checkpoint stacks."""
    layout: Layout

    def places(self, model: ModelConfig) -> Iterator[tuple[tuple[int, ...], list[str]]]:
        """Every index into the stacked dimensions, with its transformers names."""
        sizes = {"layer": model.num_layers, "expert": model.moe.num_experts if model.moe else 0}
        stacked = [size for axis, size in sizes.items() if f"{{{axis}}}" in self.names[0]]
        for index in itertools.product(*map(range, stacked)):
            yield index, self.names_at(index)

    def names_at(self, index: tuple[int, ...]) -> list[str]:
        """transformers' names at an index (layer, expert) or a prefix of it."""
        where = dict(zip(("layer", "expert"), index, strict=False))
        return [name.format(**where) for name in self.names]


def decoder_rules(model: ModelConfig) -> list[Rule]:
    """One rule per tensor of a model, with the names most families use: Llama's, and Qwen2-MoE's for experts."""
    same, layer = Same(), "model.layers.{layer}."
    table = [
        Rule(EMBEDDING, ("model.embed_tokens.weight",), same),
        *_attention(model, f"{layer}self_attn."),
    ]
    if model.pre_norm:
        table.append(Rule(ATTENTION_NORM, (f"{layer}input_layernorm.weight",), same))
        table.append(Rule(MLP_NORM, (f"{layer}post_attention_layernorm.weight",), same))
    if model.post_norm:
        table.append(Rule(POST_ATTENTION_NORM, (f"{layer}post_self_attn_layernorm.weight",), same))
        table.append(Rule(POST_MLP_NORM, (f"{layer}post_mlp_layernorm.weight",), same))
    table += _experts(model, f"{layer}mlp.") if model.moe else _ffn("", f"{layer}mlp.")
    table.append(Rule(FINAL_NORM, ("model.norm.weight",), same))
    if model.is_scalar:
        table.append(Rule(SCORE, (SCORE,), same))
    elif not model.tie_embeddings:
        table.append(Rule(OUTPUT, ("lm_head.weight",), same))
    return table


def _attention(model: ModelConfig, theirs: str) -> list[Rule]:
    same, qkv = Same(), GroupedQKV(model.num_attention_heads, model.num_query_groups)
    table = [
        Rule(QKV, tuple(f"{theirs}{part}_proj.weight" for part in "qkv"), qkv),
        Rule(ATTENTION_OUTPUT, (f"{theirs}o_proj.weight",), same),
    ]
    if model.qkv_bias:
        table.append(Rule(QKV_BIAS, tuple(f"{theirs}{part}_proj.bias" for part in "qkv"), qkv))
    if model.qk_norm or model.joint_qk_norm:
        table += [Rule(Q_NORM, (f"{theirs}q_norm.weight",), same), Rule(K_NORM, (f"{theirs}k_norm.weight",), same)]
    return table


def _ffn(ours: str, theirs: str) -> list[Rule]:
    """A gated FFN."""
    gate_and_up = (f"{theirs}gate_proj.weight", f"{theirs}up_proj.weight")
    return [
        Rule(f"{LAYERS}mlp.{ours}linear_fc1.weight", gate_and_up, Halves()),
        Rule(f"{LAYERS}mlp.{ours}linear_fc2.weight", (f"{theirs}down_proj.weight",), Same()),
    ]


def _experts(model: ModelConfig, theirs: str) -> list[Rule]:
    assert model.moe is not None
    table = [
        *_ffn("experts.experts.", f"{theirs}experts.{{expert}}."),
        Rule(ROUTER, (f"{theirs}gate.weight",), Same()),
    ]
    if model.moe.shared_expert_ffn_hidden_size:
        table += _ffn("shared_experts.", f"{theirs}shared_expert.")
        table.append(Rule(SHARED_GATE, (f"{theirs}shared_expert_gate.weight",), Same()))
    return table


def renamed(rules: Sequence[Rule], names: Mapping[str, tuple[str, ...]]) -> list[Rule]:
    """The rules with other transformers names, by checkpoint key."""
    return [replace(rule, names=names.get(rule.key, rule.names)) for rule in rules]
