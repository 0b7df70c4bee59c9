"""Checkpoints against torch.save: bytes per second, how long a save stalls training, the cost of digests.

.venv/bin/python benchmarks/checkpoint.py [--hidden 512] [--rounds 5]
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
from pathlib import Path
from typing import Any

import torch

from cupola_trainer import checkpoint, models, optim, runtime
from cupola_trainer.checkpoint import Checkpointer, storage
from cupola_trainer.checkpoint.shards import moment_shards, weight_shards
from cupola_trainer.config import LayoutConfig, ModelConfig, OptimizerConfig


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


def measure(folder: Path, hidden: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each method, interleaved; `bytes` of one checkpoint."""
    layout = LayoutConfig()
    model = ModelConfig(
        vocab_size=8192, hidden_size=hidden, num_layers=8, num_attention_heads=8, num_query_groups=4,
        ffn_hidden_size=4 * hidden, max_position_embeddings=256,
    )  # fmt: skip
    runtime.start(layout, seed=0)
    trainee = optim.build(models.build(model, layout), layout, OptimizerConfig(), 10)
    saver = Checkpointer(trainee.chunks, trainee.optimizer, trainee.scheduler)
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


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--hidden", type=int, default=512)
    arguments.add_argument("--rounds", type=int, default=5)
    options = arguments.parse_args()
    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp(prefix="checkpoints-", dir="."))
    try:
        found = measure(folder, options.hidden, options.rounds)
    finally:
        shutil.rmtree(folder)
    size = found.pop("bytes")[0]
    best = {name: min(values) for name, values in found.items()}
    print(f"{size / 1e6:,.0f} MB per checkpoint; best (median) of {options.rounds}")
    for name, values in found.items():
        print(
            f"  {name:<22} {best[name]:7.3f} s ({statistics.median(values):.3f})  {size / best[name] / 1e9:6.2f} GB/s"
        )
    print(f"  stall / save           {best['stall'] / best['save']:7.1%}")
    print(f"  cost of digests        {best['save'] / best['save without digests'] - 1:7.1%}")


if __name__ == "__main__":
    main()
