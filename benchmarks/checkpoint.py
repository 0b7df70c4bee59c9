"""Checkpoints against torch.save: bytes per second, how long a save stalls training, the cost of digests.

.venv/bin/python benchmarks/checkpoint.py [--hidden 512] [--rounds 5] [--host-memory 16]
.venv/bin/python benchmarks/checkpoint.py --plan     # seconds to plan a checkpoint of 1T parameters on 2,048 ranks
"""

import argparse
import contextlib
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cupola_trainer import checkpoint, models, optim, runtime
from cupola_trainer.checkpoint import Checkpointer, storage
from cupola_trainer.checkpoint.shards import moment_shards, weight_shards
from cupola_trainer.checkpoint.share import KeptShare
from cupola_trainer.checkpoint.staging import Staging
from cupola_trainer.config import LayoutConfig, ModelConfig, OptimizerConfig
from cupola_trainer.config.model.presets import PRESETS
from cupola_trainer.config.model.sizes import parameter_count
from cupola_trainer.planning.saves import plan_save


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of `work`."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class NoDigest:
    """Replaces blake3, to measure writing without it."""

    AUTO = -1

    def __init__(self, **_: object) -> None: ...

    def update(self, _: object) -> "NoDigest":
        return self

    def hexdigest(self) -> str:
        return "0" * 64


def measure(folder: Path, hidden: int, rounds: int, limit: int) -> dict[str, list[float]]:
    """Seconds of each method, interleaved; `bytes` of one checkpoint and of the host memory that its save took.

    Args:
        limit: host memory for a save, in bytes.
    """
    layout = LayoutConfig()
    model = ModelConfig(
        vocab_size=8192, hidden_size=hidden, num_layers=8, num_attention_heads=8, num_query_groups=4,
        ffn_hidden_size=4 * hidden, max_position_embeddings=256,
    )  # fmt: skip
    runtime.start(layout, seed=0)
    trainee = optim.build(models.build(model, layout), layout, OptimizerConfig(), 10)
    saver = Checkpointer(trainee.chunks, trainee.optimizer, trainee.scheduler, staging=Staging(limit))
    what: dict[str, Any] = {
        "model": model, "layout": layout, "step": 1, "consumed_samples": 1, "seed": 0, "objective": "next_token",
        "tokenizer": None,
    }  # fmt: skip
    shards = [*weight_shards(trainee.chunks), *moment_shards(trainee.chunks, trainee.optimizer)]
    found: dict[str, list[float]] = {"bytes": [float(sum(shard.data.nbytes for shard in shards))]}
    plain = {f"{shard.key} {shard.offset}": shard.data for shard in shards}
    ours, theirs = folder / "ours", folder / "theirs.pt"

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    def save_plainly() -> None:
        with theirs.open("wb") as file:
            torch.save(plain, file)
            file.flush()
            os.fsync(file.fileno())

    saver.begin(ours, **what).finish()  # allocates the host memory
    for _ in range(rounds):
        shutil.rmtree(ours)
        note("save", seconds(lambda: saver.begin(ours, **what).finish()))
        shutil.rmtree(ours)
        with without_digests():
            note("save without digests", seconds(lambda: saver.begin(ours, **what).finish()))
        note("torch.save and fsync", seconds(save_plainly))
        shutil.rmtree(ours)  # in training each save has its own folder
        began = time.perf_counter()
        save = saver.begin(ours, **what)
        stall = time.perf_counter() - began
        step(trainee)
        stall += seconds(save.wait_until_copied)
        while not save.ready():
            time.sleep(0.01)
        note("stall", stall + seconds(save.finish))
        note(
            "load",
            seconds(lambda: checkpoint.load_training(ours, trainee.chunks, trainee.optimizer, trainee.scheduler)),
        )
        note("torch.load", seconds(lambda: torch.load(theirs)))
        note("list of shards, built", seconds(KeptShare(trainee.chunks, trainee.optimizer).now))
        note("list of shards, kept", seconds(saver.share.now))
    found["host memory"] = [float(saver.staging.nbytes)]
    runtime.stop()
    return found


def step(trainee: optim.Trainee) -> None:
    """A forward and backward pass over 1,024 tokens: what overlaps with a save before the weights change."""
    tokens = torch.randint(0, 8192, (4, 256))
    losses = trainee.chunks[0](tokens, torch.arange(256).expand(4, -1), None, labels=tokens)
    losses.sum().backward()
    trainee.optimizer.zero_grad()


@contextlib.contextmanager
def without_digests() -> Iterator[None]:
    """Disable digests."""
    digest, storage.blake3 = storage.blake3, NoDigest  # type: ignore[attr-defined, misc, assignment]
    try:
        yield
    finally:
        storage.blake3 = digest  # type: ignore[attr-defined]


def plan() -> None:
    """Plan a checkpoint of a mixture of a trillion parameters on 2,048 ranks, and print how long it took."""
    small = PRESETS["qwen2-57b-a14b"]
    assert small.moe
    experts = replace(small.moe, num_experts=384, expert_ffn_hidden_size=2048, shared_expert_ffn_hidden_size=2048)
    model = replace(
        small, num_layers=64, hidden_size=7168, head_dim=128, num_attention_heads=64, num_query_groups=8, moe=experts
    )
    layout = LayoutConfig(tp=8, sp=True, pp=16, dp=16, ep=64)
    began = time.perf_counter()
    planned = plan_save(model, layout, torch.bfloat16)
    took = time.perf_counter() - began
    print(f"{parameter_count(model):,} parameters on {layout.world_size:,} ranks: planned in {took:.1f} s")
    print(f"  {'peak of this process':<22} {runtime.memory_bytes():,}")
    for name, value in planned.summary(16 << 30, ranks_per_node=8).items():
        print(f"  {name:<22} {value:,}" if isinstance(value, int) else f"  {name:<22} {value}")


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--plan", action="store_true")
    arguments.add_argument("--host-memory", type=float, default=16.0, metavar="GIB")
    arguments.add_argument("--hidden", type=int, default=512)
    arguments.add_argument("--rounds", type=int, default=5)
    options = arguments.parse_args()
    warnings.simplefilter("ignore")
    if options.plan:
        plan()
        return
    folder = Path(tempfile.mkdtemp(prefix="checkpoints-", dir="."))
    try:
        found = measure(folder, options.hidden, options.rounds, int(options.host_memory * 2**30))
    finally:
        shutil.rmtree(folder)
    size, memory = found.pop("bytes")[0], found.pop("host memory")[0]
    best = {name: min(values) for name, values in found.items()}
    print(
        f"{size / 1e6:,.0f} MB per checkpoint, {memory / 1e6:,.0f} MB of host memory; best (median) of {options.rounds}"
    )
    for name, values in found.items():
        print(
            f"  {name:<22} {best[name]:7.3f} s ({statistics.median(values):.3f})  {size / best[name] / 1e9:6.2f} GB/s"
        )
    print(f"  stall / save           {best['stall'] / best['save']:7.1%}")
    print(f"  cost of digests        {best['save'] / best['save without digests'] - 1:7.1%}")


if __name__ == "__main__":
    main()
