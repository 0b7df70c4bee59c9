"""Freeze a model and add adapters to its layers; describe adapters in checkpoints."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from torch import Tensor

from cupola_platform import artifacts
from cupola_platform.errors import ConfigError
from cupola_trainer.checkpoint.description import Progress, read_training
from cupola_trainer.config import LayoutConfig, LoraConfig, ModelConfig
from cupola_trainer.lora.layers import A, adapt
from cupola_trainer.models.initialization import sharded_tensors
from cupola_trainer.upcycling.experts import derived_seed


def attach(chunks: Sequence[Any], lora: LoraConfig, model: ModelConfig, layout: LayoutConfig, seed: int) -> None:
    """Freeze a model with loaded weights and add adapters. Called on every rank, before the optimizer is created.

    B is zero, so the model's output is unchanged. A is drawn from U(-1/sqrt(in), 1/sqrt(in)), as in PEFT, seeded by its
    name: the same numbers in every layout.

    Raises:
        ConfigError: the model has no layers of a target, or the layout does not support adapters on them.
    """
    lora.check(model, layout)
    for chunk in chunks:
        chunk.requires_grad_(False)
        for name, layer in _adapted(chunk, lora):
            if not isinstance(layer, ColumnParallelLinear | RowParallelLinear):
                raise ConfigError(
                    f"lora: {name} is a {type(layer).__name__}, which does not support adapters. Change lora.targets."
                )
            adapt(layer, lora, gated=name == "linear_fc1")
        if layout.recompute == "full" and chunk.pre_process:  # recomputation needs an input that requires grad
            chunk.embedding.register_forward_hook(lambda module, inputs, output: output.requires_grad_(True))
    with torch.no_grad():
        for shard in sharded_tensors(chunks):
            if shard.key.endswith(A):
                shard.data.copy_(_draw(shard, seed))


def describe(parent: Path | None, lora: LoraConfig) -> dict[str, Any]:
    """An adapter's description in its checkpoint's training.json: its settings and the digest of its base.

    Raises:
        ConfigError: `parent` is None.
    """
    if parent is None:
        raise ConfigError("lora needs a parent checkpoint to adapt. Set parent.")
    return {**dataclasses.asdict(lora), "targets": list(lora.targets), "base": artifacts.read(parent).digest}


def check_resumed(progress: Progress, described: dict[str, Any] | None) -> None:
    """Refuse to resume with adapters or a base other than the checkpoint's.

    Raises:
        ConfigError: names what differs.
    """
    saved = progress.extra.get("adapter")
    if progress.step == 0 or saved == described:
        return
    name = next(
        key for key in {**(saved or {}), **(described or {})} if (saved or {}).get(key) != (described or {}).get(key)
    )
    raise ConfigError(
        f"lora.{name}={(described or {}).get(name)}, but the checkpoint at step {progress.step} has "
        f"{(saved or {}).get(name)}. Restore it, or use another output folder."
    )


def read_adapter(folder: Path) -> tuple[LoraConfig, str]:
    """An adapter's settings and its base's digest, from its checkpoint.

    Raises:
        ConfigError: the checkpoint is a full model.
    """
    described = read_training(folder).get("adapter")
    if not described:
        raise ConfigError(f"{folder} holds a full model, not an adapter. Give the checkpoint of a stage with `lora`.")
    described = dict(described)
    base = described.pop("base")
    return LoraConfig(**described), base


def _adapted(chunk: Any, lora: LoraConfig) -> Iterator[tuple[str, Any]]:
    for block in chunk.decoder.layers:
        places = []
        if "attention" in lora.targets:
            places += [(block.self_attention, name) for name in ("linear_qkv", "linear_proj")]
        experts = getattr(block.mlp, "experts", None)
        dense = block.mlp if experts is None else getattr(block.mlp, "shared_experts", None)
        ffns = [dense] if "mlp" in lora.targets and dense is not None else []
        ffns += list(experts.local_experts) if experts is not None and "experts" in lora.targets else []
        places += [(ffn, name) for ffn in ffns for name in ("linear_fc1", "linear_fc2")]
        yield from ((name, getattr(module, name)) for module, name in places)


def _draw(shard: Any, seed: int) -> Tensor:
    stacked = shard.prepend_axis_num
    shape, offset = shard.global_shape[stacked:], shard.global_offset[stacked:]
    name = "/".join((shard.key, *map(str, shard.global_offset[:stacked])))
    generator = torch.Generator().manual_seed(derived_seed(seed, name))
    whole = (torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(shape[-1])
    return whole[tuple(slice(start, start + size) for start, size in zip(offset, shard.local_shape, strict=True))]
