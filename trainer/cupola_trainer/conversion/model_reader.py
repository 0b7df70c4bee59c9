"""The weights of a model in training by transformers' names, read from memory."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cupola_trainer import runtime
from cupola_trainer.checkpoint.saving import gather
from cupola_trainer.checkpoint.shards import Shard, weight_shards
from cupola_trainer.checkpoint.storage import owned
from cupola_trainer.config import ModelConfig
from cupola_trainer.conversion.mapping import to_huggingface


def huggingface_weights(chunks: Sequence[torch.nn.Module], model: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that an export would hold now, by name, whole on every rank.

    Collective: every rank must iterate to the end. One tensor of one layer is in memory at a time; it is all-reduced,
    with each element on one rank and zeros on the others.

    Args:
        chunks: the model, possibly in training, in any layout, without adapters.
    """
    for chunk in chunks:
        gather(chunk)
    return to_huggingface(model, _GatheredWeights(chunks).read)


class _GatheredWeights:
    """Whole tensors, assembled from the shards of all ranks."""

    def __init__(self, chunks: Sequence[torch.nn.Module]) -> None:
        shards = [shard for shard in weight_shards(chunks) if shard.main]
        outlines: list[Any] = [None] * runtime.world_size()
        mine = [(shard.place, shard.data.nbytes, shard.shape, shard.data.dtype) for shard in shards]
        dist.all_gather_object(outlines, mine)
        self._outline = {place[0]: (shape, dtype) for entries in outlines for place, _, shape, dtype in entries}
        self._mine: dict[str, list[Shard]] = defaultdict(list)
        for shard in owned(shards, ([entry[:2] for entry in entries] for entries in outlines), runtime.rank()):
            self._mine[shard.key].append(shard)

    def read(self, key: str, index: tuple[int, ...]) -> Tensor:
        """The tensor's slice at an index into its leading dimensions."""
        shape, dtype = self._outline[key]
        whole = torch.zeros(shape[len(index) :], dtype=dtype, device=runtime.device())
        for shard in self._mine[key]:
            inside = tuple(at - start for at, start in zip(index, shard.offset, strict=False))
            if all(0 <= at < size for at, size in zip(inside, shard.size, strict=False)):
                ends = zip(shard.offset[len(index) :], shard.size[len(index) :], strict=True)
                whole[tuple(slice(start, start + size) for start, size in ends)] = shard.data[inside]
        dist.all_reduce(whole)
        return whole
