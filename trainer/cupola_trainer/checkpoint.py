"""Training checkpoints: sealed folders that any layout can load.

    model.json      the ModelConfig
    training.json   step, consumed samples, seed, objective, layout
    tokenizer/      as transformers saves it
    state/          Megatron's distributed checkpoint: weights, optimizer, schedule, random number generators
    manifest.json   written last; digests are verified before anything is unpickled

A checkpoint is written under a temporary name and renamed when it is whole.
"""

import dataclasses
import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.serialization import (
    get_default_load_sharded_strategy,
    get_default_save_sharded_strategy,
)
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from megatron.core.utils import unwrap_model
from pydantic import TypeAdapter

from cupola_platform import artifacts
from cupola_platform.artifacts import Artifact
from cupola_platform.errors import ConfigError, NotFoundError
from cupola_trainer import runtime
from cupola_trainer.config import ModelConfig, ParallelConfig

MODEL = TypeAdapter(ModelConfig)


@dataclass(frozen=True)
class Progress:
    """How far a training job has come."""

    step: int = 0
    consumed_samples: int = 0


def save(
    folder: Path,
    chunks: Sequence[torch.nn.Module],
    *,
    model: ModelConfig,
    parallel: ParallelConfig,
    step: int,
    consumed_samples: int,
    seed: int,
    objective: str,
    tokenizer: Path | None,
    optimizer: Any = None,
    scheduler: Any = None,
) -> Artifact:
    """Write one checkpoint; every rank calls it. `tokenizer` is a folder to copy. Replaces what lies at `folder`."""
    temporary = folder.with_name(f".{folder.name}.partial")
    runtime.on_first_rank(lambda: _empty(temporary / "state"))
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    strategy = FullyParallelSaveStrategyWrapper(get_default_save_sharded_strategy("torch_dist"), group)
    state = _sharded_weights(chunks)
    if optimizer is not None:
        state |= _sharded_training(state, optimizer, is_loading=False)
        state["scheduler"] = scheduler.state_dict()
        state["rng"] = _sharded_rng()
    dist_checkpointing.save(state, str(temporary / "state"), strategy)
    dist.barrier()
    training = {
        "step": step,
        "consumed_samples": consumed_samples,
        "seed": seed,
        "objective": objective,
        "parallel": dataclasses.asdict(parallel),
        "optimizer": optimizer is not None,
    }

    def seal() -> None:
        (temporary / "model.json").write_bytes(MODEL.dump_json(model, indent=2))
        (temporary / "training.json").write_text(json.dumps(training, indent=2))
        if tokenizer:
            shutil.copytree(tokenizer, temporary / "tokenizer")
        artifacts.seal(temporary, kind="checkpoint", config=training)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)

    runtime.on_first_rank(seal)
    return artifacts.read(folder)


def _empty(folder: Path) -> None:
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.mkdir(parents=True)


def read_model(folder: Path) -> ModelConfig:
    """The shape of a checkpoint's model.

    Raises:
        NotFoundError: there is no checkpoint in the folder.
    """
    path = folder / "model.json"
    if not path.is_file():
        raise NotFoundError(f"{folder} holds no checkpoint: model.json is missing. Give a checkpoint's folder.")
    return MODEL.validate_json(path.read_bytes())


def load_weights(folder: Path, chunks: Sequence[torch.nn.Module]) -> None:
    """Load weights only, into any layout. Every rank calls it.

    Raises:
        CorruptArtifactError: a file does not match its digest; nothing was unpickled.
    """
    _verify(folder)
    _load_into(chunks, _read_state(folder, _sharded_weights(chunks)))


def load_training(folder: Path, chunks: Sequence[torch.nn.Module], optimizer: Any, scheduler: Any) -> Progress:
    """Load everything that the next step depends on. Bitwise in the layout that saved it; in another, up to rounding.

    Raises:
        CorruptArtifactError: a file does not match its digest; nothing was unpickled.
        ConfigError: the optimizer's state cannot be brought into this layout.
    """
    _verify(folder)
    training = json.loads((folder / "training.json").read_text())
    _check_optimizer(folder, training, read_model(folder))
    state = _sharded_weights(chunks)
    state |= _sharded_training(state, optimizer, is_loading=True)
    same_ranks = _same_ranks(training["parallel"])
    if same_ranks:
        state["rng"] = _sharded_rng()
    state = _read_state(folder, state)
    _load_into(chunks, state)
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    if same_ranks:
        _restore_rng(state["rng"])
    return Progress(training["step"], training["consumed_samples"])


def _verify(folder: Path) -> None:
    runtime.on_first_rank(lambda: artifacts.verify(folder) and None)


def _check_optimizer(folder: Path, training: dict[str, Any], model: ModelConfig) -> None:
    if not training["optimizer"]:
        raise ConfigError(f"{folder} holds weights only. Start a new job from it (initial: {folder}).")
    saved, wanted = training["parallel"]["ep"], parallel_state.get_expert_model_parallel_world_size()
    if model.moe and saved != wanted:
        raise ConfigError(
            f"{folder} was saved with ep={saved}; its optimizer state cannot be loaded with ep={wanted}. "
            f"Keep ep={saved}, or start a new job from its weights (initial: {folder})."
        )


def _same_ranks(saved: dict[str, Any]) -> bool:
    now = {
        "tp": parallel_state.get_tensor_model_parallel_world_size(),
        "pp": parallel_state.get_pipeline_model_parallel_world_size(),
        "cp": parallel_state.get_context_parallel_world_size(),
        "dp": parallel_state.get_data_parallel_world_size(),
    }
    return all(saved[name] == size for name, size in now.items())


def _metadata() -> dict[str, Any]:
    return {
        "distrib_optim_sharding_type": "fully_reshardable",  # the default does not load
        "chained_optim_avoid_prefix": True,
        "singleton_local_shards": False,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }


def _names(chunks: Sequence[torch.nn.Module]) -> list[str]:
    return ["model"] if len(chunks) == 1 else [f"model{i}" for i in range(len(chunks))]


def _sharded_weights(chunks: Sequence[torch.nn.Module]) -> dict[str, Any]:
    bare = unwrap_model(list(chunks))
    shards = [chunk.sharded_state_dict(metadata=_metadata()) for chunk in bare]
    return dict(zip(_names(chunks), shards, strict=True))


def _sharded_training(weights: dict[str, Any], optimizer: Any, *, is_loading: bool) -> dict[str, Any]:
    shards = optimizer.sharded_state_dict(weights, is_loading=is_loading, metadata=_metadata())
    return {"optimizer": shards}


def _read_state(folder: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    path = str(folder / "state")
    state: dict[str, Any] = dist_checkpointing.load(wanted, path, get_default_load_sharded_strategy(path))
    return state


def _load_into(chunks: Sequence[torch.nn.Module], state: dict[str, Any]) -> None:
    for chunk, name in zip(unwrap_model(list(chunks)), _names(chunks), strict=True):
        chunk.load_state_dict(state[name])


def _sharded_rng() -> ShardedObject:
    """Every rank's generators; restored only where the same ranks resume."""
    state = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "megatron": get_cuda_rng_tracker().get_states(),
    }
    return ShardedObject("rng", state, (dist.get_world_size(),), (dist.get_rank(),))


def _restore_rng(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    get_cuda_rng_tracker().set_states(state["megatron"])
