"""Loading a checkpoint into any layout: each rank verifies a share of the files and reads the boxes it needs."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cupola_platform import artifacts
from cupola_platform.errors import ConfigError, CorruptArtifactError
from cupola_platform.unshared.partly import Partly
from cupola_trainer.checkpoint.description import STATE, Progress, read_model, read_optimizer, read_training
from cupola_trainer.checkpoint.scales import SCALES, scale_shards
from cupola_trainer.checkpoint.shards import MASTER, Shard, moment_key, moment_shards, weight_shards
from cupola_trainer.checkpoint.storage import StoredState
from cupola_trainer.config import OPTIMIZER
from cupola_trainer.models.output import SCORE
from cupola_trainer.runtime import folders

OURS = ("step", "consumed_samples", "seed", "objective", "layout")
"""Entries of training.json that `Checkpointer` writes; the rest are the loop's."""


log = logging.getLogger(__name__)


def load_weights(folder: Path, chunks: Sequence[torch.nn.Module]) -> None:
    """Load only the weights, into any layout. Collective: every rank must call it.

    Loading a language model into one with a scalar head leaves the head as initialized.

    Raises:
        CorruptArtifactError: a file does not match its digest, or a weight is missing.
        ConfigError: the checkpoint holds only adapters.
    """
    verify(folder, weights_only=True)
    if read_training(folder).get("adapter"):
        raise ConfigError(f"{folder} holds only adapters. Merge them first: cupola checkpoint merge-adapter.")
    state = StoredState(folder / STATE)
    new = set() if read_model(folder).is_scalar else {SCORE}
    _fill(state, [(shard, shard.key) for shard in weight_shards(chunks) if shard.key not in new])


def load_training(folder: Path, chunks: Sequence[torch.nn.Module], optimizer: Any, scheduler: Any) -> Progress:
    """Load everything that the next step depends on: bitwise in the layout that saved it, up to rounding in others.

    Raises:
        CorruptArtifactError: a file does not match its digest, or a weight or moment is missing or unexpected.
        ConfigError: the checkpoint has no optimizer state, or was trained with another schedule.
    """
    verify(folder)
    training, schedule = read_training(folder), read_optimizer(folder)
    _check_schedule(folder, schedule["scheduler"], scheduler.state_dict())
    state = StoredState(folder / STATE, folder / OPTIMIZER)
    weights, moments = weight_shards(chunks), moment_shards(chunks, optimizer)
    _check_moments(folder, state, weights, moments)

    wanted = []
    for shard in weights:
        master = moment_key(MASTER, shard.key)  # from a bf16 run; more exact if these weights are fp32
        exact = shard.data.dtype is torch.float32 and master in state.boxes
        wanted.append((shard, master if exact else shard.key))
    for shard in moments:
        key = shard.key if shard.key in state.boxes else shard.key.removeprefix(moment_key(MASTER, ""))
        wanted.append((shard, key))
    wanted += [
        (shard, shard.key) for shard in scale_shards(chunks) if shard.key in state.boxes
    ]  # else it starts afresh
    _fill(state, wanted)
    for group in optimizer.param_groups:
        group["step"] = schedule["step"]
    scheduler.num_steps = 0
    scheduler.step(increment=schedule["scheduler"]["num_steps"])
    extra = {name: value for name, value in training.items() if name not in OURS}
    return Progress(training["step"], training["consumed_samples"], extra)


def verify(folder: Path, *, weights_only: bool = False) -> None:
    """Check the digest of every file on this machine, each rank a share of them. Collective: every rank must call it.

    Args:
        weights_only: leave the optimizer's files unread.

    Raises:
        CorruptArtifactError: raised on every rank, naming the file.
    """
    unread = OPTIMIZER if weights_only else None
    _on_all_ranks(lambda: artifacts.verify(folder, share=folders.share(), unread=unread))


def _fill(state: StoredState, wanted: Sequence[tuple[Shard, str]]) -> None:
    """Fill shards from the stored tensors of these keys, on every rank."""

    def work() -> None:
        state.fetch(wanted)
        for shard, key in wanted:
            state.fill(shard, key)

    before = Partly.fetched
    _on_all_ranks(work)
    if not folders.is_shared():
        amounts = [0] * dist.get_world_size()
        dist.all_gather_object(amounts, Partly.fetched - before)
        log.info("fetched %s bytes of tensors from the store, all ranks together", f"{sum(amounts):,}")


def _on_all_ranks(work: Callable[[], object]) -> None:
    """Run `work` on every rank; a failure on one is raised on all."""
    failure: CorruptArtifactError | None = None
    try:
        work()
    except CorruptArtifactError as error:
        failure = error
    failures: list[CorruptArtifactError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, failure)
    first = next((each for each in failures if each), None)
    if first:
        raise first


def _check_moments(folder: Path, state: StoredState, weights: Sequence[Shard], moments: Sequence[Shard]) -> None:
    """Refuse missing or unexpected moments instead of starting them at zero."""
    optional = moment_key(MASTER, ""), SCALES
    ranks: list[set[str]] = [set() for _ in range(dist.get_world_size())]
    dist.all_gather_object(ranks, {shard.key for shard in (*weights, *moments)})
    wanted = {key for key in set().union(*ranks) if not key.startswith(optional)}
    stored = {key for key in state.boxes if not key.startswith(optional)}
    if missing := sorted(wanted - stored):
        raise CorruptArtifactError(f"{folder} holds no {missing[0]}, which this model trains ({len(missing)} missing).")
    if extra := sorted(stored - wanted):
        raise CorruptArtifactError(f"{folder} holds {extra[0]}, which this model does not have ({len(extra)} extra).")


def _check_schedule(folder: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, value in wanted.items():
        if name != "num_steps" and saved.get(name) != value:
            raise ConfigError(
                f"{folder} was trained with {name}={saved.get(name)}, this job has {value}. "
                f"Keep it, or start a new job from its weights (parent: {folder})."
            )
