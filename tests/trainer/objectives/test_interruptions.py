"""A job publishes the same artifact as an uninterrupted one after its rank, its torchrun, all its processes and its
machine are killed and it is preempted: in pretraining over several layouts, and for each post-training objective."""

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from cupola_platform.launch.local import LocalJob, LocalLauncher
from cupola_trainer.config import (
    BatchConfig,
    CheckpointConfig,
    DpoData,
    LayoutConfig,
    ModelConfig,
    NextTokenData,
    OptimizerConfig,
    RewardData,
    SftData,
    TrainJob,
    write_job,
)
from cupola_trainer.reporting.metrics import read_metrics

MODEL = ModelConfig(
    vocab_size=1024,
    hidden_size=32,
    num_layers=2,
    num_attention_heads=2,
    num_query_groups=2,
    ffn_hidden_size=64,
    max_position_embeddings=64,
)
PRETRAINING = {"tp": LayoutConfig(tp=2), "pp": LayoutConfig(pp=2), "dp": LayoutConfig(dp=2)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    prompts = [[{"role": "user", "content": f"Say {a}{b}"}] for a in range(10) for b in range(10)]
    chats = [{"messages": [*p, {"role": "assistant", "content": p[0]["content"][4:]}]} for p in prompts]
    pairs = [{"messages": p, "chosen": f"{n} it is", "rejected": "no"} for n, p in enumerate(prompts)]
    for name, rows in (("conversations", chats), ("preferences", pairs)):
        (folder / name).mkdir()
        (folder / name / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:90]))
        (folder / name / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[90:]))
    return folder


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory, chat_tokenizer_folder: Path) -> Path:
    """A checkpoint to start from."""
    from cupola_trainer import checkpoint, models, runtime

    runtime.start(LayoutConfig(), seed=0)
    folder = tmp_path_factory.mktemp("parent") / "checkpoint"
    chunks = models.build(MODEL, LayoutConfig())
    checkpoint.save(
        folder, chunks, model=MODEL, layout=LayoutConfig(), step=0, consumed_samples=0, seed=0,
        objective="next_token", tokenizer=chat_tokenizer_folder,
    )  # fmt: skip
    return folder


@pytest.fixture
def job(kind: str, tmp_path: Path, tokens_folder: Path, data: Path, parent: Path) -> TrainJob:
    shared: dict[str, Any] = {
        "output": tmp_path / "victim",
        "steps": 80,
        "seed": 5,
        "optimizer": OptimizerConfig(lr=1e-3, warmup_steps=5),
        "batch": BatchConfig(sequence_length=64, micro_batch_size=2, global_batch_size=8),
        "checkpoint": CheckpointConfig(every=7),
    }
    if kind in PRETRAINING:
        return TrainJob(model=MODEL, data=NextTokenData(tokens=tokens_folder), layout=PRETRAINING[kind], **shared)
    two = LayoutConfig(dp=2)
    if kind == "sft":
        return TrainJob(parent=parent, data=SftData(conversations=data / "conversations"), layout=two, **shared)
    made = DpoData if kind == "dpo" else RewardData
    return TrainJob(parent=parent, data=made(preferences=data / "preferences"), layout=two, **shared)


def start(job: TrainJob, environment: dict[str, str]) -> LocalJob:
    job.output.mkdir(parents=True, exist_ok=True)
    write_job(job, job.output / "job.json")
    left = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    with pytest.MonkeyPatch.context() as patch:
        for name in left:
            patch.delenv(name, raising=False)
        launcher = LocalLauncher(max_processes=2)
        kept = {name: value for name, value in environment.items() if name not in left}
        return launcher.start(job.output / "job.json", processes=2, log=job.output / "log", env=kept)


def wait_for_steps(job: TrainJob, running: LocalJob, count: int) -> None:
    """Wait until this start has done `count` steps."""
    until, metrics = time.monotonic() + 200, job.output / "metrics.jsonl"
    before = os.stat(metrics).st_ino if metrics.exists() else 0
    while True:
        assert time.monotonic() < until
        assert running.poll() is None, (job.output / "log").read_text()[-3000:]
        if metrics.exists() and os.stat(metrics).st_ino != before:
            lines = read_metrics(metrics)
            began = max(number for number, line in enumerate(lines) if line["event"] == "start") if lines else 0
            if sum(line["event"] == "step" for line in lines[began:]) >= count:
                return
        time.sleep(0.002)


def processes(running: LocalJob) -> list[psutil.Process]:
    """torchrun's parent, torchrun and the ranks."""
    above = psutil.Process(running.pid)
    return [above, *above.children(recursive=True)]


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("kind", [*PRETRAINING, "sft", "dpo", "reward"])
def test_kills_at_random_moments_leave_the_artifact_unchanged(
    job: TrainJob,
    kind: str,
    power_cut: Any,
    changed_files: Callable[..., list[str]],
    result_folder: Callable[..., Path],
) -> None:
    draw, twin = random.Random(kind), job.but(output=job.output.with_name("twin"))
    assert start(twin, {}).wait(400) == 0, (twin.output / "log").read_text()[-3000:]

    running = start(job, power_cut.environment)  # at some point during startup
    time.sleep(draw.uniform(3, 9))
    for process in processes(running):
        process.kill()
    assert running.wait(60) != 0
    power_cut.strike(job.output)
    for how in ("rank", "torchrun", "terminated", "machine"):
        running = start(job, power_cut.environment)
        wait_for_steps(job, running, draw.randint(3, 16))
        time.sleep(draw.uniform(0, 0.05))
        above, torchrun, *ranks = processes(running)
        if how == "terminated":
            running.stop()
        for process in {
            "rank": [ranks[-1]],
            "torchrun": [torchrun],
            "terminated": [],
            "machine": [above, torchrun, *ranks],
        }[how]:
            process.kill()
        assert running.wait(60) not in (0, None)
        if how == "machine":
            power_cut.strike(job.output)
    assert start(job, {}).wait(400) == 0, (job.output / "log").read_text()[-3000:]
    assert changed_files(result_folder(job.output), result_folder(twin.output)) == []
