"""Whole tensors into a model of any layout. Megatron's sharded state dict says which part of which tensor a rank holds."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from cupola_trainer.models.initialization import sharded_tensors


@torch.no_grad()  # type: ignore[untyped-decorator]
def fill(chunks: Sequence[Any], read: Callable[[str], Tensor]) -> None:
    """Copy whole tensors into a model, each rank its own shards.

    Args:
        chunks: the model's chunks on this rank, in any layout.
        read: gives the whole tensor of a checkpoint key; called once a key.
    """
    for key, shards in groupby(sorted(sharded_tensors(chunks), key=_key), key=_key):
        whole = read(key)
        for shard in shards:
            shard.data.copy_(whole[shard.global_slice()].reshape(shard.data.shape))


def whole_shapes(chunks: Sequence[Any]) -> dict[str, tuple[int, ...]]:
    """The whole shape of every tensor that this rank's chunks hold a part of, by checkpoint key."""
    return {shard.key: tuple(shard.global_shape) for shard in sharded_tensors(chunks)}


def _key(shard: Any) -> str:
    return str(shard.key)
