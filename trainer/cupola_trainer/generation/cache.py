"""The KV cache, and core attention that reads it.

The model is the one used in training: while a cache is attached, each layer's core attention is replaced by attention
over the cache. Everything else (projections, RoPE, tensor and expert parallelism) is unchanged.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cupola_trainer.models.attention.attend import Attend
from cupola_trainer.models.attention.texts import Texts


class LayerCache:
    """One layer's keys and values for a batch: [b, groups, capacity, head_dim], the first `length` columns filled."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self.stored: Tensor | None = None
        """[b, groups, 2, capacity, head_dim]"""

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append columns ([s, b, groups, head_dim] each). Returns all columns, [b, groups, length, head_dim] each."""
        both = torch.stack([key, value]).permute(2, 3, 0, 1, 4)  # [b, groups, 2, s, head_dim]
        if self.stored is None:
            self.stored = both.new_empty(*both.shape[:3], self.capacity, both.size(4))
        end = self.length + both.size(3)
        self.stored[:, :, :, self.length : end] = both
        return self._columns(end)

    def append_one(self, both: Tensor) -> tuple[Tensor, Tensor]:
        """Append one column's key and value [b, groups, 2, head_dim]. Returns all columns."""
        assert self.stored is not None
        self.stored.select(3, self.length).copy_(both)
        return self._columns(self.length + 1)

    def append_at(self, both: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """The same at a column that the device knows [1]. Returns all columns of the capacity, filled or not."""
        assert self.stored is not None
        self.stored.index_copy_(3, column, both.unsqueeze(3))
        keys, values = self.stored.unbind(2)
        return keys, values

    def clear_rest(self) -> None:
        """Fill the columns that are still free with zeros: a mask hides them, but not what is not a number."""
        assert self.stored is not None
        self.stored[:, :, :, self.length :] = 0

    def _columns(self, end: int) -> tuple[Tensor, Tensor]:
        assert self.stored is not None
        self.length = end
        keys, values = self.stored.narrow(3, 0, end).unbind(2)
        return keys, values

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        if self.stored is not None:
            self.stored = self.stored[rows]


class CachedAttention(torch.nn.Module):
    """Core attention of new queries over the whole cache. The mask is True where a query may attend; None if no row is
    padded."""

    def __init__(self, cache: LayerCache, attend: Attend) -> None:
        super().__init__()
        self.cache = cache
        self.attend = attend

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        packed_seq_params: Texts | None = None,
        **_: Any,
    ) -> Tensor:
        """[s, b, heads, head_dim] queries, [s, b, groups, head_dim] keys and values -> [s, b, heads * head_dim]."""
        keys, values = self.cache.append(key, value)
        queries = query.permute(1, 2, 0, 3)
        if packed_seq_params:
            out = self.attend.each_text(queries, keys, values, packed_seq_params)
        else:
            positions = places(attention_mask) if attention_mask is not None and self.attend.needs_positions else None
            out = self.attend(queries, keys, values, attention_mask, positions)
        return out.permute(2, 0, 1, 3).reshape(query.size(0), query.size(1), -1)


def places(visible: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of queries [b, q] and keys [b, k] from a mask [b, 1, q, k]. Left padding is what a row's last query
    does not see."""
    queries, keys = visible.shape[-2:]
    padding = visible[:, 0, -1].int().argmax(dim=-1)
    columns = torch.arange(keys, device=visible.device)
    of_keys = (columns - padding[:, None]).clamp(min=0)
    return of_keys[:, keys - queries :], of_keys


@contextmanager
def attached_cache(layers: Iterable[Any], capacity: int) -> Iterator[list[LayerCache]]:
    """Attach a cache of `capacity` columns to every decoder layer within the block."""
    attentions = [layer.self_attention for layer in layers]
    originals = [attention.core_attention for attention in attentions]
    caches = [LayerCache(capacity) for _ in attentions]
    for attention, cache in zip(attentions, caches, strict=True):
        attend = Attend.of(attention.config, attention.layer_number)
        attention.core_attention = CachedAttention(cache, attend)
    try:
        yield caches
    finally:
        for attention, original in zip(attentions, originals, strict=True):
            attention.core_attention = original
