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
from cupola_trainer.models.output import SCORE


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

    def places(self, model: ModelConfig) -> Iterator[tuple[tuple[int, ...], list[str]]]:
        """Every index into the stacked dimensions, with the Hugging Face names there."""
        sizes = {"layer": model.num_layers, "expert": model.moe.num_experts if model.moe else 0}
        stacked = [size for axis, size in sizes.items() if f"{{{axis}}}" in self.names[0]]
        for index in itertools.product(*map(range, stacked)):
            yield index, self.names_at(index)

    def names_at(self, index: tuple[int, ...]) -> list[str]:
        """The Hugging Face names at an index (layer, expert), or its beginning."""
        where = dict(zip(("layer", "expert"), index, strict=False))
        return [name.format(**where) for name in self.names]


def rules(model: ModelConfig) -> list[Rule]:
    """The whole table for one model: every tensor of it, once."""
    same, halves = Same(), Halves()
    layer, ours = "model.layers.{layer}.", "decoder.layers."
    table = [
        Rule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), same),
        *_attention(model, layer, ours),
        *(Rule(f"{ours}{key}", (f"{layer}{name}.weight",), same) for key, name in _norms(model).items()),
    ]

    def ffn(key: str, name: str) -> list[Rule]:
        parts = _each(f"{layer}mlp.{name}{{}}_proj.weight", ("gate", "up"))
        return [
            Rule(f"{ours}mlp.{key}linear_fc1.weight", parts, halves),
            Rule(f"{ours}mlp.{key}linear_fc2.weight", (f"{layer}mlp.{name}down_proj.weight",), same),
        ]

    if model.moe is None:
        table += ffn("", "")
    else:
        table += ffn("experts.experts.", "experts.{expert}.")
        table.append(Rule(f"{ours}mlp.router.weight", (f"{layer}mlp.gate.weight",), same))
        if model.moe.shared_expert_ffn_hidden_size:
            gate = f"{layer}mlp.shared_expert_gate.weight"
            table += [
                *ffn("shared_experts.", "shared_expert."),
                Rule(f"{ours}mlp.shared_experts.gate_weight", (gate,), same),
            ]
    table.append(Rule("decoder.final_layernorm.weight", ("model.norm.weight",), same))
    if model.is_scalar:
        table.append(Rule(SCORE, (SCORE,), same))
    elif not model.tie_embeddings:
        table.append(Rule("output_layer.weight", ("lm_head.weight",), same))
    return table


def _attention(model: ModelConfig, layer: str, ours: str) -> list[Rule]:
    qkv = GroupedQKV(model.num_attention_heads, model.num_query_groups)
    table = [
        Rule(f"{ours}self_attention.linear_qkv.weight", _each(f"{layer}self_attn.{{}}_proj.weight", "qkv"), qkv),
        Rule(f"{ours}self_attention.linear_proj.weight", (f"{layer}self_attn.o_proj.weight",), Same()),
    ]
    if model.qkv_bias:
        biases = _each(f"{layer}self_attn.{{}}_proj.bias", "qkv")
        table.append(Rule(f"{ours}self_attention.linear_qkv.bias", biases, qkv))
    return table


def _norms(model: ModelConfig) -> dict[str, str]:
    """Of a layer, ours to Hugging Face's. With norms after as well as before, theirs get other names."""
    norms = {
        "self_attention.linear_qkv.layer_norm_weight": "input_layernorm",
        "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm",
    }
    if model.post_norm:
        norms |= {
            "post_attention_norm.weight": "post_attention_layernorm",
            "mlp.linear_fc1.layer_norm_weight": "pre_feedforward_layernorm",
            "post_mlp_norm.weight": "post_feedforward_layernorm",
        }
    return norms


def _each(pattern: str, parts: Sequence[str]) -> tuple[str, ...]:
    return tuple(pattern.replace("{}", part) for part in parts)


def to_huggingface(model: ModelConfig, read: Callable[[str, tuple[int, ...]], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Every Hugging Face tensor of a model, by name; one checkpoint tensor of one layer is held at a time.

    Args:
        read: gives the checkpoint's tensor by its key and an index into its leading (layer, expert) dimensions.
    """
    for rule in rules(model):
        for index, names in rule.places(model):
            for name, part in zip(names, rule.layout.split(read(rule.key, index)), strict=True):
                yield name, part.contiguous()
    yield from _empty_shared_experts(model, read)


def _empty_shared_experts(
    model: ModelConfig, read: Callable[[str, tuple[int, ...]], Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """transformers' Qwen2-MoE always has a shared expert: a model without one gives it no width."""
    if model.moe is None or model.moe.shared_expert_ffn_hidden_size:
        return
    for layer in range(model.num_layers):
        router = read("decoder.layers.mlp.router.weight", (layer,))
        base = f"model.layers.{layer}.mlp.shared_expert"
        yield f"{base}.gate_proj.weight", router.new_zeros(0, model.hidden_size)
        yield f"{base}.up_proj.weight", router.new_zeros(0, model.hidden_size)
        yield f"{base}.down_proj.weight", router.new_zeros(model.hidden_size, 0)
        yield f"{base}_gate.weight", router.new_zeros(1, model.hidden_size)


def from_huggingface(model: ModelConfig, key: str, index: tuple[int, ...], read: Callable[[str], Tensor]) -> Tensor:
    """One tensor of a checkpoint, by its key and an index into its leading dimensions, from Hugging Face's.

    Raises:
        KeyError: the model has no tensor by that key.
    """
    rule = {rule.key: rule for rule in rules(model)}[key]
    return rule.layout.join([read(name) for name in rule.names_at(index)])
