"""Whole tensors into a model of any layout, one layer at a time.

Megatron's sharded state dict says which part a rank holds.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch

from cupola_trainer.conversion.tensor_rules import Read
from cupola_trainer.models.initialization import sharded_tensors

Place = tuple[str, tuple[int, ...]]
"""A checkpoint's key, and the index into the leading (layer, expert) dimensions of the tensor that it names."""


@torch.no_grad()  # type: ignore[untyped-decorator]
def fill(chunks: Sequence[Any], read: Read) -> None:
    """Copy whole tensors into a model, each rank its own shards, layer after layer.

    Args:
        chunks: the model's chunks on this rank, in any layout.
        read: gives the whole tensor at a place; called once a place, and only for those that this rank holds.
    """
    ordered = sorted(sharded_tensors(chunks), key=_order)
    for (key, index), shards in groupby(ordered, key=place):
        whole = read(key, index)
        for shard in shards:
            shard.data.copy_(whole[shard.global_slice()[len(index) :]].reshape(shard.data.shape))


def whole_shapes(chunks: Sequence[Any]) -> dict[str, tuple[int, ...]]:
    """The whole shape of every tensor that this rank's chunks hold a part of, by checkpoint key."""
    return {shard.key: tuple(shard.global_shape) for shard in sharded_tensors(chunks)}


def place(shard: Any) -> Place:
    """Where the tensor that a shard is a part of lies in a checkpoint."""
    return str(shard.key), tuple(shard.global_offset[: shard.prepend_axis_num])


def _order(shard: Any) -> tuple[tuple[int, ...], tuple[int, ...], str]:
    key, index = place(shard)
    return index[:1], index, key
