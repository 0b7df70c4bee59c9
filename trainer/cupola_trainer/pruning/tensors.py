"""The pruned model's tensors by checkpoint key and (layer, expert) index, sliced from the larger one's on demand."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cupola_platform.errors import ConfigError
from cupola_trainer.config import ModelConfig
from cupola_trainer.pruning.choice import Kept

Read = Callable[[str, tuple[int, ...]], Tensor]
AXES: dict[str, tuple[str, ...]] = {
    "embedding.word_embeddings.weight": ("", "hidden"),
    "output_layer.weight": ("", "hidden"),
    "decoder.final_layernorm.weight": ("hidden",),
    "decoder.layers.self_attention.linear_qkv.layer_norm_weight": ("hidden",),
    "decoder.layers.self_attention.linear_qkv.weight": ("qkv", "hidden"),
    "decoder.layers.self_attention.linear_qkv.bias": ("qkv",),
    "decoder.layers.self_attention.q_layernorm.weight": ("query heads",),
    "decoder.layers.self_attention.k_layernorm.weight": ("key heads",),
    "decoder.layers.self_attention.linear_proj.weight": ("hidden", "heads"),
    "decoder.layers.mlp.linear_fc1.layer_norm_weight": ("hidden",),
    "decoder.layers.post_attention_norm.weight": ("hidden",),
    "decoder.layers.post_mlp_norm.weight": ("hidden",),
    "decoder.layers.mlp.linear_fc1.weight": ("gate and up", "hidden"),
    "decoder.layers.mlp.linear_fc2.weight": ("hidden", "ffn"),
    "decoder.layers.mlp.shared_experts.linear_fc1.weight": ("gate and up", "hidden"),
    "decoder.layers.mlp.shared_experts.linear_fc2.weight": ("hidden", "ffn"),
    "decoder.layers.mlp.shared_experts.gate_weight": ("", "hidden"),
    "decoder.layers.mlp.router.weight": ("experts", "hidden"),
    "decoder.layers.mlp.router.expert_bias": ("experts",),
    "decoder.layers.mlp.experts.experts.linear_fc1.weight": ("gate and up", "hidden"),
    "decoder.layers.mlp.experts.experts.linear_fc2.weight": ("hidden", "ffn"),
}
"""What each axis of a tensor (of one layer or expert) counts; "" for axes that are never pruned."""


@dataclass(frozen=True)
class Pruned:
    """The smaller model's tensors.

    Args:
        model: the larger model.
        read: reads its tensors.
    """

    model: ModelConfig
    kept: Kept
    read: Read

    def __call__(self, key: str, index: tuple[int, ...]) -> Tensor:
        """One tensor of one layer (and expert).

        Raises:
            ConfigError: the tensor is unknown.
        """
        if key not in AXES:
            raise ConfigError(
                f"{key} cannot be pruned: it is not part of the decoder. Remove it from the checkpoint first."
            )
        layer = self.kept.layers[index[0]] if index else -1
        expert = None
        if len(index) > 1:
            expert = int(self.kept.experts[layer][index[1]]) if self.kept.experts else index[1]
        tensor = self.read(key, () if not index else (layer,) if expert is None else (layer, expert))
        for axis, what in enumerate(AXES[key]):
            places = self._places(what, layer, expert)
            if places is not None:
                tensor = tensor.index_select(axis, places.to(tensor.device))
        return tensor

    def _places(self, what: str, layer: int, expert: int | None) -> Tensor | None:
        kept = self.kept
        if what == "hidden":
            return kept.hidden
        if what == "experts":
            return kept.experts[layer] if kept.experts else None
        if what in ("ffn", "gate and up"):
            return self._units(layer, expert, twice=what != "ffn")
        if what in ("heads", "qkv") and kept.groups and kept.heads:
            return self._head_rows(kept.groups[layer], kept.heads[layer], with_key_and_value=what == "qkv")
        if what in ("query heads", "key heads") and self.model.joint_qk_norm and kept.groups and kept.heads:
            if what == "query heads":
                return self._head_rows(kept.groups[layer], kept.heads[layer], with_key_and_value=False)
            return self._rows_of(kept.groups[layer].cpu())
        return None

    def _units(self, layer: int, expert: int | None, *, twice: bool) -> Tensor | None:
        moe = self.model.moe
        if expert is None:
            units = self.kept.ffn[layer] if self.kept.ffn else None
            size = (moe.shared_expert_ffn_hidden_size or 0) if moe else self.model.ffn_hidden_size
        else:
            units = self.kept.expert_ffn[layer][expert] if self.kept.expert_ffn else None
            size = moe.expert_ffn_hidden_size if moe else 0
        return torch.cat([units, units + size]) if units is not None and twice else units

    def _head_rows(self, groups: Tensor, heads: Tensor, *, with_key_and_value: bool) -> Tensor:
        """Rows of the QKV projection, where a group is its query heads, key and value, or of queries only."""
        per_group = self.model.num_attention_heads // self.model.num_query_groups
        if with_key_and_value:
            last = torch.tensor([per_group, per_group + 1]).expand(len(groups), 2)
            heads, per_group = torch.cat([heads.cpu(), last], dim=1), per_group + 2
        rows = groups.cpu()[:, None] * per_group + heads.cpu()  # [groups, heads per group]
        return self._rows_of(rows.flatten())

    def _rows_of(self, heads: Tensor) -> Tensor:
        size = self.model.head_size
        return (heads[:, None] * size + torch.arange(size)).flatten()
