"""Choose the layers, channels, heads, units and experts to keep: the most important ones, in their original order."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cupola_trainer.config import ModelConfig, PruneTarget
from cupola_trainer.pruning.importance import Importance


@dataclass(frozen=True)
class Kept:
    """Original indices of what is kept, ascending, by original layer number. None: all are kept."""

    layers: tuple[int, ...]
    hidden: Tensor | None
    groups: dict[int, Tensor] | None
    heads: dict[int, Tensor] | None
    """Indices within the group, [groups kept, heads per group]."""
    ffn: dict[int, Tensor] | None
    """Units of the dense FFN or of the shared expert."""
    experts: dict[int, Tensor] | None
    expert_ffn: dict[int, Tensor] | None
    """[original experts, units]."""


def choose(model: ModelConfig, target: PruneTarget, importance: Importance | None) -> Kept:
    """Choose what to keep of a model.

    Args:
        importance: may be None if only numbered layers are dropped.

    Raises:
        ConfigError: see `PruneTarget.shape`.
    """
    small = target.shape(model)
    if importance is None:
        layers = tuple(layer for layer in range(model.num_layers) if layer not in target.drop_layers)
        return Kept(layers, None, None, None, None, None, None)
    layers = _layers(model, target, importance.layers)
    groups, heads = _attention(model, small, importance.heads, layers)

    def each(scores: Tensor, count: int | None, now: int | None) -> dict[int, Tensor] | None:
        return None if count is None or count == now else {layer: _best(scores[layer], count) for layer in layers}

    shared = (model.moe.shared_expert_ffn_hidden_size if model.moe else model.ffn_hidden_size) or 0
    left = (small.moe.shared_expert_ffn_hidden_size if small.moe else small.ffn_hidden_size) or 0
    old, new = model.moe, small.moe
    return Kept(
        layers,
        None if small.hidden_size == model.hidden_size else _best(importance.hidden, small.hidden_size),
        groups,
        heads,
        each(importance.ffn, left, shared),
        each(importance.experts, new.num_experts, old.num_experts) if old and new else None,
        each(importance.expert_ffn, new.expert_ffn_hidden_size, old.expert_ffn_hidden_size) if old and new else None,
    )


def _layers(model: ModelConfig, target: PruneTarget, influence: Tensor) -> tuple[int, ...]:
    if target.drop_layers:
        return tuple(layer for layer in range(model.num_layers) if layer not in target.drop_layers)
    return tuple(_best(influence, target.num_layers or model.num_layers).tolist())


def _attention(
    model: ModelConfig, small: ModelConfig, scores: Tensor, layers: tuple[int, ...]
) -> tuple[dict[int, Tensor] | None, dict[int, Tensor] | None]:
    """Choose groups by the sum over their heads, then heads within each group."""
    per_group = small.num_attention_heads // small.num_query_groups
    before = model.num_attention_heads // model.num_query_groups
    if small.num_query_groups == model.num_query_groups and per_group == before:
        return None, None
    groups, heads = {}, {}
    for layer in layers:
        grouped = scores[layer].view(model.num_query_groups, before)
        groups[layer] = _best(grouped.sum(-1), small.num_query_groups)
        heads[layer] = _best(grouped[groups[layer]], per_group)
    return groups, heads


def _best(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest along the last axis, ascending; ties go to the first."""
    return torch.sort(scores, dim=-1, descending=True, stable=True).indices[..., :count].sort(dim=-1).values
