"""What each rank of a layout would write of a checkpoint, without the ranks.

Up to three ranks of each pipeline stage are built on the meta device; the others' parts follow from theirs, because
shards are even. A rank's dense weights depend on its place in the tensor-parallel group, its experts on its places in
the expert-parallel and expert-tensor-parallel groups, and its moments also on its place among the replicas.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

from cupola_trainer import models, optim, runtime
from cupola_trainer.checkpoint.description import STATE
from cupola_trainer.checkpoint.shards import MASTER, Offset, Size, moment_key, pieces, weight_shards, within
from cupola_trainer.checkpoint.share import part_of
from cupola_trainer.checkpoint.storage import StoredBox, in_sequence, writers
from cupola_trainer.config import OPTIMIZER, LayoutConfig, ModelConfig
from cupola_trainer.optim.states import MOMENTS
from cupola_trainer.runtime.pretending import pretend

FINGERPRINTED = False  # a forecast

EXPERT = ".experts."
"""Part of the names of routed experts' weights."""

Boxes = Mapping[str, list[StoredBox]]
"""What a rank writes, in sequence, by the checkpoint's part."""


class Held(NamedTuple):
    """A box that a rank holds of a weight or a moment."""

    weight: int
    """Index of the weight among its stage's."""
    key: str
    offset: Offset
    size: Size
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.size) * int(self.dtype.itemsize)


@dataclass(frozen=True)
class Step:
    """How a weight's shard on the next rank of a group differs from the first rank's."""

    offset: Offset
    main: bool
    """Whether that rank may write it."""


@dataclass(frozen=True)
class Replica:
    """A rank of a data-parallel group, for Megatron's division of the optimizer."""

    number: int
    count: int

    def rank(self) -> int:
        return self.number

    def size(self) -> int:
        return self.count


def shares(
    model: ModelConfig, layout: LayoutConfig, dtype: torch.dtype, moments: torch.dtype = torch.float32
) -> Iterator[tuple[int, Boxes]]:
    """Each rank of a layout, and the boxes that it writes of a training checkpoint, where they are in its files.

    Leaves the process group. Without the distributed optimizer, boxes of moments may follow in another order.

    Args:
        dtype: of the weights.
        moments: dtype of AdamW's moments.
    """
    for stage in range(layout.pp):
        yield from Stage(model, layout, dtype, moments, stage).shares()


class Stage:
    """The ranks of a pipeline stage."""

    def __init__(
        self, model: ModelConfig, layout: LayoutConfig, dtype: torch.dtype, moments: torch.dtype, number: int
    ) -> None:
        self.layout, self.moments_dtype = layout, moments
        self.ranks = layout.tp * layout.cp * layout.dp
        self.first = number * self.ranks
        etp = runtime.expert_tensor_parallel_size(layout)
        self.groups = {False: ((1, layout.tp),), True: ((1, etp), (etp, layout.ep))}
        """Distance of neighbours and number of ranks of the groups that split weights: dense ones, and experts."""
        self.ranks_of_a_replica = {False: layout.tp, True: etp * layout.ep}
        with pretend(layout, self.first):
            chunks = optim.data_parallel(models.build(model, layout, seed=None, dtype=dtype), layout)
            self.weights = weight_shards(chunks)
            self._inside: dict[Tensor, list[int]] = {}
            buffers = {False: [each for chunk in chunks for each in chunk.buffers]}
            buffers[True] = [each for chunk in chunks for each in chunk.expert_parallel_buffers]
            self.moments = {
                kind: [self._moments(buffers[kind], replica) for replica in range(self.ranks // size)]
                for kind, size in self.ranks_of_a_replica.items()
            }
        distances = {distance for groups in self.groups.values() for distance, size in groups if size > 1}
        self.steps = {distance: self._steps(model, dtype, distance) for distance in distances}

    def shares(self) -> Iterator[tuple[int, Boxes]]:
        """Each rank, and the boxes that it writes."""
        held = [list(self._writable(rank)) for rank in range(self.ranks)]
        chosen = writers([((box.key, box.offset, box.size), box.nbytes) for box in boxes] for boxes in held)
        for rank, boxes in enumerate(held):
            written: dict[str, list[StoredBox]] = {STATE: [], OPTIMIZER: []}
            for box in boxes:
                if chosen[box.key, box.offset, box.size] == rank:
                    shape, dtype = self.weights[box.weight].shape, str(box.dtype).removeprefix("torch.")
                    written[part_of(box.key)].append(StoredBox(box.key, dtype, shape, box.offset, box.size, at=0))
            yield self.first + rank, {part: in_sequence(boxes) for part, boxes in written.items()}

    def _writable(self, rank: int) -> Iterator[Held]:
        """The boxes that a rank may write: its weights, then its moments."""
        moved = [self._moved(index, rank) for index in range(len(self.weights))]
        for index, weight in enumerate(self.weights):
            if moved[index].main:
                yield Held(index, weight.key, _sum(weight.offset, moved[index].offset), weight.size, weight.data.dtype)
        for kind, size in self.ranks_of_a_replica.items():
            for box in self.moments[kind][rank // size]:
                if moved[box.weight].main:
                    yield box._replace(offset=_sum(box.offset, moved[box.weight].offset))

    def _moved(self, index: int, rank: int) -> Step:
        """How a rank's shard of a weight differs from the first rank's."""
        weight = self.weights[index]
        offset, main = tuple(0 for _ in weight.offset), weight.main
        for distance, size in self.groups[EXPERT in weight.key]:
            if place := rank // distance % size:
                step = self.steps[distance][index]
                offset = _sum(offset, tuple(place * each for each in step.offset))
                main = main and step.main
        return Step(offset, main)

    def _steps(self, model: ModelConfig, dtype: torch.dtype, distance: int) -> list[Step]:
        """How each weight's shard differs on the rank at this distance from the first one."""
        with pretend(self.layout, self.first + distance):
            others = weight_shards(models.build(model, self.layout, seed=None, dtype=dtype))
        return [
            Step(tuple(a - b for a, b in zip(other.offset, weight.offset, strict=True)), other.main)
            for other, weight in zip(others, self.weights, strict=True)
        ]

    def _moments(self, buffers: Sequence[Any], replica: int) -> list[Held]:
        """The moments of a replica of the first rank, in the order of `moment_shards`."""
        return [
            Held(index, moment_key(moment, self.weights[index].key), offset, size, dtype)
            for parameter, start, count in self._ranges(buffers, replica)
            for index in self._weights_in(parameter)
            for moment, dtype in self._kept(parameter)
            for offset, size, _ in pieces(self.weights[index], parameter, start, count)
        ]

    def _kept(self, parameter: Tensor) -> Iterator[tuple[str, torch.dtype]]:
        """What the optimizer keeps of a parameter."""
        if parameter.dtype is not torch.float32:
            yield MASTER, torch.float32
        yield from ((moment, self.moments_dtype) for moment in MOMENTS)

    def _ranges(self, buffers: Sequence[Any], replica: int) -> Iterator[tuple[Tensor, int, int]]:
        """Each parameter that a replica optimizes a part of, the first element of the part, and their number."""
        for buffer in buffers:
            if not self.layout.distributed_optimizer:
                yield from ((parameter, 0, parameter.numel()) for parameter in buffer.param_index_map)
                continue
            buffer.data_parallel_group = Replica(replica, buffer.data_parallel_world_size)
            for bucket in range(len(buffer.buckets)):
                ranges = DistributedOptimizer._build_model_gbuf_range(buffer, bucket)["param_map"]
                yield from ((parameter, part["param"].start, part["param"].size) for parameter, part in ranges.items())

    def _weights_in(self, parameter: Tensor) -> list[int]:
        """The weights in a parameter's memory, by index and in the order of memory."""
        if parameter not in self._inside:
            index = {id(weight): number for number, weight in enumerate(self.weights)}
            inside = sorted(within(self.weights, parameter), key=lambda weight: weight.data.storage_offset())
            self._inside[parameter] = [index[id(weight)] for weight in inside]
        return self._inside[parameter]


def _sum(one: Offset, other: Offset) -> Offset:
    return tuple(a + b for a, b in zip(one, other, strict=True))
