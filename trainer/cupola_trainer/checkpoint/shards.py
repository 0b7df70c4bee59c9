"""A rank's part of a model in training, as boxes of global tensors, whose names and offsets no layout changes.

A weight already is a box of a global tensor (Megatron's ShardedTensor). The distributed optimizer instead holds a range
of a weight's flattened elements; a range of a row-major array is a few boxes (at most 2n - 1 in n dimensions). So
moments are saved without gathering, and any other layout can find its part.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.utils import unwrap_model
from torch import Tensor

from cupola_trainer.models.initialization import sharded_tensors

ADAPTERS = (".lora_a", ".lora_b")
MASTER = "master"
"""Name of the fp32 copy of a bf16 weight, saved with the optimizer's moments."""

_MOMENTS = "optimizer."

Offset = tuple[int, ...]
Size = tuple[int, ...]
"""Along each axis."""
Box = tuple[Offset, Size]
Place = tuple[str, Offset, Size]
"""Key, offset and size: equal for all replicas."""


@dataclass(frozen=True)
class Shard:
    """A box of a global tensor, and its memory."""

    key: str
    shape: tuple[int, ...]
    """Shape of the global tensor."""
    offset: tuple[int, ...]
    data: Tensor
    """Memory to write from or read into; has as many axes as `shape`."""
    main: bool = True
    """Whether this rank may write it; False for replicas that another group writes."""

    @property
    def size(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    @property
    def place(self) -> Place:
        return self.key, self.offset, self.size


def moment_key(moment: str, key: str) -> str:
    """Key of a weight's moment."""
    return f"{_MOMENTS}{moment}.{key}"


def is_moment(key: str) -> bool:
    """Whether a key is a moment's, not a weight's."""
    return key.startswith(_MOMENTS)


def weight_shards(chunks: Sequence[torch.nn.Module]) -> list[Shard]:
    """This rank's weights, each once; with adapters, only theirs: the rest is frozen and stored elsewhere."""
    shards = [_shard(entry) for entry in sharded_tensors(unwrap_model(list(chunks)))]
    shards = [shard for shard in shards if shard.key.endswith(ADAPTERS)] or shards
    return list({shard.place: shard for shard in reversed(shards)}.values())[::-1]


def moment_shards(chunks: Sequence[torch.nn.Module], optimizer: Any) -> list[Shard]:
    """This rank's optimizer moments, and its fp32 weights if the model is bf16."""
    weights = sorted(weight_shards(chunks), key=lambda shard: shard.data.storage_offset())
    shards = []
    for part in optimizer.chained_optimizers:
        if part.is_stub_optimizer:
            continue
        for parameter, start, main, states in _moments(part):
            shards += [
                piece
                for weight in within(weights, parameter)
                for moment, values in _named(main, parameter, states).items()
                for piece in _pieces(weight, parameter, start, moment, values)
            ]
    return shards


def master_shards(chunks: Sequence[torch.nn.Module], part: Any, moment: str | None = None) -> list[Shard]:
    """The fp32 weights that a part of the optimizer updates, copies or not, or one of their moments in the same pieces.
    Keys are those of `MASTER`."""
    weights = sorted(weight_shards(chunks), key=lambda shard: shard.data.storage_offset())
    return [
        piece
        for parameter, start, main, states in _moments(part)
        for weight in within(weights, parameter)
        for piece in _pieces(weight, parameter, start, MASTER, (states[moment] if moment else main).detach().view(-1))
    ]


def boxes(shape: Sequence[int], start: int, stop: int) -> Iterator[Box]:
    """Elements `start` to `stop` of a flattened row-major array, as boxes in the same order."""
    if start >= stop:
        return
    if len(shape) <= 1:
        yield ((start,), (stop - start,)) if shape else ((), ())
        return
    row = math.prod(shape[1:])
    (first, head), (last, tail) = divmod(start, row), divmod(stop, row)
    if first == last:
        yield from _in_row(first, boxes(shape[1:], head, tail))
        return
    if head:
        yield from _in_row(first, boxes(shape[1:], head, row))
        first += 1
    if last > first:
        yield (first, *(0 for _ in shape[1:])), (last - first, *shape[1:])
    yield from _in_row(last, boxes(shape[1:], 0, tail))


def _in_row(row: int, inner: Iterator[Box]) -> Iterator[Box]:
    return (((row, *offset), (1, *size)) for offset, size in inner)


def _shard(entry: ShardedTensor) -> Shard:
    data = entry.data.detach()
    data = data.view(*(1 for _ in range(entry.prepend_axis_num)), *data.shape)
    replica = entry.replica_id if isinstance(entry.replica_id, tuple) else (entry.replica_id, 0)
    return Shard(entry.key, tuple(entry.global_shape), tuple(entry.global_offset), data, not any(replica[:-1]))


def _moments(part: Any) -> Iterator[tuple[Tensor, int, Tensor, dict[str, Tensor]]]:
    """Each parameter, the index of its first flattened element that this rank optimizes, and from there the updated
    weights and their moments."""
    part.init_state_fn(part.optimizer, part.config)  # the moments of a new optimizer: zeros
    if isinstance(part, DistributedOptimizer):
        for parameter in part.model_param_gbuf_map:
            owned = part._get_model_param_range_map(parameter)["param"]
            states = dict(part._get_main_param_and_optimizer_states(parameter))
            yield parameter, owned.start, states.pop("param"), states
        return
    fp16 = zip(_flat(part, "float16_groups"), _flat(part, "fp32_from_float16_groups"), strict=True)
    model_parameter = {id(main): parameter for parameter, main in fp16}
    for group in part.optimizer.param_groups:
        for main in group["params"]:
            parameter = model_parameter.get(id(main), main)
            yield parameter, 0, main, part.optimizer.state[main]


def _flat(part: Any, groups: str) -> list[Tensor]:
    return [parameter for group in getattr(part, groups, ()) for parameter in group]


def _named(main: Tensor, parameter: Tensor, states: dict[str, Tensor]) -> dict[str, Tensor]:
    master = {} if main.dtype == parameter.dtype else {MASTER: main}
    return {name: value.detach().view(-1) for name, value in (master | states).items()}


def within(weights: Sequence[Shard], parameter: Tensor) -> list[Shard]:
    """The weights in a parameter's memory, by storage and offset: tensors on the meta device have no addresses."""
    memory = parameter.untyped_storage()._cdata
    first, last = parameter.storage_offset(), parameter.storage_offset() + parameter.numel()
    return [
        weight
        for weight in weights
        if weight.data.untyped_storage()._cdata == memory and first <= weight.data.storage_offset() < last
    ]


def _pieces(weight: Shard, parameter: Tensor, start: int, moment: str, values: Tensor) -> Iterator[Shard]:
    """The part of a moment that belongs to one weight; a parameter may hold several (SwiGLU's gate and up)."""
    for place, size, at in pieces(weight, parameter, start, values.numel()):
        data = values[at : at + math.prod(size)].view(size)
        yield Shard(moment_key(moment, weight.key), weight.shape, place, data, weight.main)


def pieces(weight: Shard, parameter: Tensor, start: int, count: int) -> Iterator[tuple[Offset, Size, int]]:
    """The part of a weight in a range of its parameter's flattened elements, as boxes of the global tensor.

    Args:
        start: first element of the range, which has `count`.

    Returns:
        Offset and size of each box, and its first element within the range.
    """
    assert weight.data.is_contiguous(), weight.key
    skipped = weight.data.storage_offset() - parameter.storage_offset()
    first = max(start, skipped)
    last = min(start + count, skipped + weight.data.numel())
    at = first - start
    for offset, size in boxes(weight.size, first - skipped, last - skipped):
        yield tuple(a + b for a, b in zip(weight.offset, offset, strict=True)), size, at
        at += math.prod(size)
