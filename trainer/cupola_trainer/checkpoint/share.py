"""What each rank writes of a model in training."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.utils import unwrap_model
from torch import Tensor

from cupola_trainer import runtime
from cupola_trainer.checkpoint.description import STATE
from cupola_trainer.checkpoint.scales import scale_shards
from cupola_trainer.checkpoint.shards import Place, Shard, is_moment, moment_shards, weight_shards
from cupola_trainer.checkpoint.storage import file_size, owned, placed
from cupola_trainer.config import OPTIMIZER

Share = Mapping[str, Sequence[Shard]]
"""What a rank writes, in sequence, by the checkpoint's part: `STATE` and `OPTIMIZER`."""


class KeptShare:
    """This rank's share, kept from one save to the next: finding it takes as long as writing a small checkpoint.

    A share holds views of weights and moments. It is found again if one of them, on any rank, is no longer where it
    was: a share of replaced tensors would save old values.
    """

    def __init__(self, chunks: Sequence[torch.nn.Module], optimizer: Any = None) -> None:
        self._chunks, self._optimizer = chunks, optimizer
        self._share: Share = {}
        self.sizes: list[list[int]] = []
        """Bytes of the files that each rank writes, once the share was found."""
        self._where: list[Any] | None = None

    def now(self) -> Share:
        """The share to save now. Collective."""
        if runtime.any_rank(self._where != self._locations()):
            self._share = self._find()
            self._where = self._locations()  # finding it allocates the moments of a new optimizer
        return self._share

    def _find(self) -> Share:
        shards = weight_shards(self._chunks)
        if self._optimizer is not None:
            shards += moment_shards(self._chunks, self._optimizer) + scale_shards(self._chunks)
        stage = parallel_state.get_tensor_and_data_parallel_group(with_context_parallel=True)
        places: list[list[tuple[Place, int]]] = [[] for _ in range(stage.size())]  # other stages hold none of these
        dist.all_gather_object(places, [(shard.place, shard.data.nbytes) for shard in shards if shard.main], stage)
        mine = owned(shards, places, stage.rank())
        share = {part: [shard for shard in mine if part_of(shard.key) == part] for part in (STATE, OPTIMIZER)}
        self.sizes = [[] for _ in range(dist.get_world_size())]
        parts = (STATE, OPTIMIZER) if self._optimizer is not None else (STATE,)
        dist.all_gather_object(self.sizes, [file_size(placed(share[part])) for part in parts])
        return share

    def _locations(self) -> list[Any]:
        return [(tensor.data_ptr(), tensor.dtype, tensor.shape) for tensor in self._tensors()]

    def _tensors(self) -> Iterator[Tensor]:
        """Every tensor that may be saved: weights, buffers, FP8's scales, fp32 weights and moments."""
        for chunk in unwrap_model(list(self._chunks)):  # the wrapper's `buffers` are others
            yield from chunk.parameters()
            yield from chunk.buffers()
        yield from (shard.data for shard in scale_shards(self._chunks))
        for part in self._optimizer.chained_optimizers if self._optimizer is not None else ():
            if part.is_stub_optimizer:
                continue
            for group in part.optimizer.param_groups:
                for main in group["params"]:
                    yield main
                    yield from part.optimizer.state.get(main, {}).values()


def part_of(key: str) -> str:
    """The part of a checkpoint that holds a tensor."""
    return OPTIMIZER if is_moment(key) else STATE
