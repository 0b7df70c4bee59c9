"""Write a checkpoint from whole tensors, produced one at a time, without building the model."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from torch import Tensor

from cupola_platform.artifacts import Artifact
from cupola_trainer import models
from cupola_trainer.checkpoint.saving import Checkpointer
from cupola_trainer.checkpoint.shards import Shard
from cupola_trainer.checkpoint.storage import Staging, StoredBox
from cupola_trainer.config import LayoutConfig, ModelConfig
from cupola_trainer.conversion.tensor_rules import Read
from cupola_trainer.models.initialization import sharded_tensors


def write(
    to: Path,
    model: ModelConfig,
    read: Read,
    *,
    layout: LayoutConfig,
    dtype: torch.dtype,
    seed: int,
    objective: str,
    tokenizer: Path | None,
    extra: Mapping[str, Any] | None = None,
) -> Artifact:
    """Write the checkpoint of an untrained model. Collective: every rank must call it, after `runtime.start`.

    Each rank reads what its part of the layout needs, and holds that part plus one tensor of one layer in memory.

    Args:
        extra: further entries of training.json; plain JSON.

    Raises:
        SaveFailedError: a rank could not write. The partial checkpoint is removed, also if `read` raises.
    """
    saver = Checkpointer(outline(model, layout, dtype))
    saver.staging = _LazyStaging(read, {shard.key: shard.prepend_axis_num for shard in sharded_tensors(saver.chunks)})
    shape: dict[str, Any] = {"model": model, "layout": layout, "tokenizer": tokenizer, "extra": extra}
    try:
        return saver.begin(to, step=0, consumed_samples=0, seed=seed, objective=objective, **shape).finish()
    except BaseException:
        rmtree(to.with_name(f".{to.name}.partial"), ignore_errors=True)
        raise


def outline(model: ModelConfig, layout: LayoutConfig, dtype: torch.dtype | None = None) -> list[Any]:
    """This rank's part of a model without weights, on the meta device."""
    with torch.device("meta"):
        return models.build(model, layout, seed=None, dtype=dtype)


class _LazyStaging(Staging):
    """Host memory for a checkpoint whose tensors are produced as their shards are copied, layer by layer."""

    deferred = False

    def __init__(self, read: Read, stacked: dict[str, int]) -> None:
        super().__init__()
        self.read = lru_cache(maxsize=1)(read)  # gate and up are two shards of the same tensor
        self.stacked = stacked

    def copy(self, shards: Sequence[Shard]) -> tuple[Tensor, list[StoredBox]]:
        return super().copy(sorted(shards, key=self._layer_by_layer))

    def _layer_by_layer(self, shard: Shard) -> tuple[tuple[int, ...], str, tuple[int, ...]]:
        return shard.offset[: self.stacked[shard.key]], shard.key, shard.offset

    def place(self, shard: Shard, memory: Tensor) -> None:
        leading = self.stacked[shard.key]
        whole = self.read(shard.key, shard.offset[:leading])
        part = tuple(slice(start, start + size) for start, size in zip(shard.offset, shard.size, strict=True))
        memory.copy_(whole[part[leading:]].view(shard.size))
