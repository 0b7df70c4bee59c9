"""Write whole tensors into a model of any layout, one layer at a time.

Megatron's sharded state dict tells which part a rank holds.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch

from cupola_trainer.conversion.tensor_rules import Read
from cupola_trainer.models.initialization import sharded_tensors

Place = tuple[str, tuple[int, ...]]
"""A checkpoint key, and an index into the tensor's leading (layer, expert) dimensions."""


@torch.no_grad()  # type: ignore[untyped-decorator]
def fill(chunks: Sequence[Any], read: Read) -> None:
    """Copy whole tensors into a model, each rank its own shards, layer by layer.

    Args:
        chunks: the model's chunks on this rank, in any layout.
        read: returns the whole tensor at a place; called once per place that this rank holds.
    """
    ordered = sorted(sharded_tensors(chunks), key=_order)
    for (key, index), shards in groupby(ordered, key=place):
        whole = read(key, index)
        for shard in shards:
            shard.data.copy_(whole[shard.global_slice()[len(index) :]].reshape(shard.data.shape))


def whole_shapes(chunks: Sequence[Any]) -> dict[str, tuple[int, ...]]:
    """Global shapes of the tensors that this rank's chunks hold parts of, by checkpoint key."""
    return {shard.key: tuple(shard.global_shape) for shard in sharded_tensors(chunks)}


def place(shard: Any) -> Place:
    """The checkpoint place of a shard's tensor."""
    return str(shard.key), tuple(shard.global_offset[: shard.prepend_axis_num])


def _order(shard: Any) -> tuple[tuple[int, ...], tuple[int, ...], str]:
    key, index = place(shard)
    return index[:1], index, key
