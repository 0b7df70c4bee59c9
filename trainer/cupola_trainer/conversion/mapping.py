"""Which tensor of a checkpoint holds the same numbers as which tensors of a Hugging Face folder: one table, read both ways.

A checkpoint's key names a tensor of all layers (and all experts), stacked in front: "decoder.layers.mlp.router.weight"
is [layers, experts, hidden]. Hugging Face names one tensor a layer (and an expert).
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cupola_trainer.config import ModelConfig


class Layout(Protocol):
    """How one checkpoint tensor (of one layer and expert) is made of Hugging Face's parts, and back."""

    def join(self, parts: Sequence[Tensor]) -> Tensor: ...

    def split(self, whole: Tensor) -> Sequence[Tensor]: ...


class Same:
    """The same tensor."""

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
    """Per key-value group: its query heads, its key head, its value head. Hugging Face keeps Q, K and V apart.

    Rows: groups * (heads / groups + 2) * head_dim.
    """

    heads: int
    groups: int

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        rest = parts[0].shape[1:]  # [H] for a weight, [] for a bias
        return torch.cat([part.reshape(self.groups, -1, *rest) for part in parts], dim=1).reshape(-1, *rest)

    def split(self, whole: Tensor) -> Sequence[Tensor]:
        rest = whole.shape[1:]
        rows = whole.size(0) // self.groups  # of one group
        head_dim = rows // (self.heads // self.groups + 2)
        parts = whole.reshape(self.groups, rows, *rest).split([rows - 2 * head_dim, head_dim, head_dim], dim=1)
        return [part.reshape(-1, *rest) for part in parts]


@dataclass(frozen=True)
class Rule:
    """One tensor of a checkpoint, and the Hugging Face tensors that hold the same numbers."""

    key: str
    names: tuple[str, ...]
    """May hold {layer} and {expert}: the checkpoint stacks them."""
    layout: Layout

    def sizes(self, model: ModelConfig) -> dict[str, int]:
        """The stacked dimensions in front of the checkpoint's tensor, by name."""
        sizes = {"layer": model.num_layers, "expert": model.moe.num_experts if model.moe else 0}
        return {axis: size for axis, size in sizes.items() if f"{{{axis}}}" in self.names[0]}

    def places(self, model: ModelConfig) -> Iterator[tuple[tuple[int, ...], list[str]]]:
        """Every index into the stacked dimensions, with the Hugging Face names there."""
        sizes = self.sizes(model)
        for index in itertools.product(*map(range, sizes.values())):
            where = dict(zip(sizes, index, strict=True))
            yield index, [name.format(**where) for name in self.names]


def rules(model: ModelConfig) -> list[Rule]:
    """The whole table for one model: every tensor of it, once."""
    same, halves = Same(), Halves()
    qkv = GroupedQKV(model.num_attention_heads, model.num_query_groups)
    layer, ours = "model.layers.{layer}.", "decoder.layers."
    table = [
        Rule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), same),
        Rule("decoder.final_layernorm.weight", ("model.norm.weight",), same),
        Rule(f"{ours}self_attention.linear_qkv.layer_norm_weight", (f"{layer}input_layernorm.weight",), same),
        Rule(f"{ours}self_attention.linear_qkv.weight", _each(f"{layer}self_attn.{{}}_proj.weight", "qkv"), qkv),
        Rule(f"{ours}self_attention.linear_proj.weight", (f"{layer}self_attn.o_proj.weight",), same),
        Rule(f"{ours}mlp.linear_fc1.layer_norm_weight", (f"{layer}post_attention_layernorm.weight",), same),
    ]
    if model.qkv_bias:
        table.append(
            Rule(f"{ours}self_attention.linear_qkv.bias", _each(f"{layer}self_attn.{{}}_proj.bias", "qkv"), qkv)
        )
    if not model.tie_embeddings:
        table.append(Rule("output_layer.weight", ("lm_head.weight",), same))

    def ffn(key: str, name: str) -> list[Rule]:
        return [
            Rule(
                f"{ours}mlp.{key}linear_fc1.weight", _each(f"{layer}mlp.{name}{{}}_proj.weight", ("gate", "up")), halves
            ),
            Rule(f"{ours}mlp.{key}linear_fc2.weight", (f"{layer}mlp.{name}down_proj.weight",), same),
        ]

    if model.moe is None:
        return table + ffn("", "")
    table += ffn("experts.experts.", "experts.{expert}.")
    table.append(Rule(f"{ours}mlp.router.weight", (f"{layer}mlp.gate.weight",), same))
    if model.moe.shared_expert_ffn_hidden_size:
        table += ffn("shared_experts.", "shared_expert.")
        table.append(Rule(f"{ours}mlp.shared_experts.gate_weight", (f"{layer}mlp.shared_expert_gate.weight",), same))
    return table


def _each(pattern: str, parts: Sequence[str]) -> tuple[str, ...]:
    return tuple(pattern.replace("{}", part) for part in parts)


def to_huggingface(model: ModelConfig, read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Every Hugging Face tensor of a model, by name, from the checkpoint's: one checkpoint tensor is held at a time."""
    for rule in rules(model):
        whole = read(rule.key)
        for index, names in rule.places(model):
            for name, part in zip(names, rule.layout.split(whole[index]), strict=True):
                yield name, part.contiguous()


def from_huggingface(model: ModelConfig, key: str, read: Callable[[str], Tensor]) -> Tensor:
    """One tensor of a checkpoint, by its key, from Hugging Face's.

    Raises:
        KeyError: the model has no tensor by that key.
    """
    rule = {rule.key: rule for rule in rules(model)}[key]
    parts = [rule.layout.join([read(name) for name in names]) for _, names in rule.places(model)]
    return torch.stack(parts).reshape(*rule.sizes(model).values(), *parts[0].shape)
