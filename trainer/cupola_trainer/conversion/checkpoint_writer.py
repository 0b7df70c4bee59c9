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
from cupola_trainer.checkpoint.staging import Staging
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

    Each rank reads what its part of the layout needs, and holds one tensor of one layer and a few blocks in memory.

    Args:
        extra: further entries of training.json; plain JSON.

    Raises:
        SaveFailedError: a rank could not write. The partial checkpoint is removed, also if `read` raises.
    """
    chunks = outline(model, layout, dtype)
    stacked = {shard.key: shard.prepend_axis_num for shard in sharded_tensors(chunks)}
    staging = _LazyStaging(read, stacked)
    shape: dict[str, Any] = {"model": model, "layout": layout, "tokenizer": tokenizer, "extra": extra}
    try:
        saver = Checkpointer(chunks, staging=staging)
        save = saver.begin(to, step=0, consumed_samples=0, seed=seed, objective=objective, **shape)
        save.wait_until_copied()
        if staging.failure:
            raise staging.failure
        return save.finish()
    except BaseException:
        rmtree(to.with_name(f".{to.name}.partial"), ignore_errors=True)
        raise


def outline(model: ModelConfig, layout: LayoutConfig, dtype: torch.dtype | None = None) -> list[Any]:
    """This rank's part of a model without weights, on the meta device."""
    with torch.device("meta"):
        return models.build(model, layout, seed=None, dtype=dtype)


class _LazyStaging(Staging):
    """Host memory for a checkpoint whose tensors are produced as their shards are copied, layer by layer."""

    def __init__(self, read: Read, stacked: dict[str, int]) -> None:
        super().__init__()
        self.read = lru_cache(maxsize=1)(read)  # gate and up are two shards of the same tensor
        self.stacked = stacked
        self.failure: Exception | None = None
        """Why a tensor could not be produced."""

    def arranged(self, shards: Sequence[Shard]) -> list[Shard]:
        return sorted(shards, key=self._layer_by_layer)

    def _layer_by_layer(self, shard: Shard) -> tuple[tuple[int, ...], str, tuple[int, ...]]:
        return shard.offset[: self.stacked[shard.key]], shard.key, shard.offset

    def content(self, shard: Shard) -> Tensor:
        leading = self.stacked[shard.key]
        try:
            whole = self.read(shard.key, shard.offset[:leading])
        except Exception as error:
            self.failure = error
            raise
        part = tuple(slice(start, start + size) for start, size in zip(shard.offset, shard.size, strict=True))
        return whole[part[leading:]].to(shard.data.dtype)
