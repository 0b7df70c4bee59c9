"""SIGKILL at random moments, during steps and saves: the final artifact equals an uninterrupted twin's bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cupola_trainer.config import (
    BatchConfig,
    CheckpointConfig,
    ModelConfig,
    NextTokenData,
    OptimizerConfig,
    TrainJob,
    write_job,
)
from cupola_trainer.reporting.metrics import read_metrics


def job_in(output: Path, tokens: Path, steps: int) -> TrainJob:
    return TrainJob(
        output=output,
        seed=11,
        model=ModelConfig(
            vocab_size=320, hidden_size=128, num_layers=2, num_attention_heads=4, num_query_groups=2,
            ffn_hidden_size=256, max_position_embeddings=32,
        ),
        steps=steps,
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=5),
        batch=BatchConfig(sequence_length=32, micro_batch_size=2, global_batch_size=4),
        data=NextTokenData(tokens=tokens),
        checkpoint=CheckpointConfig(every=4),
        evaluate_every=50,
        evaluate_batches=1,
    )  # fmt: skip


def start(job: TrainJob, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    job.output.mkdir(parents=True, exist_ok=True)
    write_job(job, job.output / "job.json")
    with (job.output / "log").open("ab") as log:
        command = [sys.executable, "-m", "cupola_trainer", str(job.output / "job.json")]
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def kill(job: TrainJob, process: "subprocess.Popen[bytes]", draw: random.Random) -> str | None:
    """Kill the process at a random moment after its first step. Returns where; None if the job completed first."""
    started_at = os.stat(job.output / "metrics.jsonl").st_ino if (job.output / "metrics.jsonl").exists() else 0
    in_a_save = draw.random() < 0.5
    delay = draw.uniform(0, 0.02) if in_a_save else draw.uniform(0, 0.3)
    until = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < until:
        training = (job.output / "metrics.jsonl").exists() and os.stat(
            job.output / "metrics.jsonl"
        ).st_ino != started_at
        if training and (not in_a_save or any((job.output / "checkpoints").glob(".step_*.partial"))):
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            process.wait()
            partial = any((job.output / "checkpoints").glob(".step_*.partial"))
            return "in a save" if partial else "in a step"
        time.sleep(0.001)
    return None


def numbers(output: Path) -> list[tuple[Any, ...]]:
    lines = read_metrics(output / "metrics.jsonl")
    names = ("event", "step", "loss", "grad_norm", "lr", "consumed_samples", "heldout_loss")
    return [tuple(line.get(name) for name in names) for line in lines if line["event"] in ("step", "evaluate")]


def check(
    folder: Path, tokens: Path, environment: dict[str, str], *, kills: int, steps: int, seed: int
) -> tuple[list[str], Path, Path]:
    """Kill a job at random moments, let it finish and compare its numbers with its twin's. Returns where it was killed
    and both folders."""
    twin, victim = (job_in(folder / name, tokens, steps) for name in ("twin", "victim"))
    assert start(twin, environment).wait(800) == 0, (twin.output / "log").read_text()[-3000:]
    draw = random.Random(seed)
    places: list[str] = []
    while len(places) < kills:
        place = kill(victim, start(victim, environment), draw)
        assert place, f"complete after {len(places)} kills: {(victim.output / 'log').read_text()[-2000:]}"
        places.append(place)
    assert start(victim, environment).wait(800) == 0, (victim.output / "log").read_text()[-3000:]
    assert numbers(victim.output) == numbers(twin.output)
    samples = read_metrics(victim.output / "samples" / "dp_00000.jsonl")
    assert [line["ranges"] for line in samples] == [[[4 * s, 4 * s + 2], [4 * s + 2, 4 * s + 4]] for s in range(steps)]
    return places, victim.output, twin.output


@pytest.fixture
def environment(launcher: Any) -> dict[str, str]:
    settings: dict[str, str] = launcher(1)[1]
    return {**settings, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_a_kill_during_a_save_leaves_no_trace(
    tmp_path: Path,
    tokens_folder: Path,
    environment: dict[str, str],
    changed_files: Callable[..., list[str]],
    result_folder: Callable[[Path], Path],
) -> None:
    places, victim, twin = check(tmp_path, tokens_folder, environment, kills=1, steps=24, seed=1)
    assert places == ["in a save"]
    assert changed_files(result_folder(victim), result_folder(twin)) == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [2, 3, 4, 5])
def test_twenty_kills_leave_no_trace(
    tmp_path: Path,
    tokens_folder: Path,
    environment: dict[str, str],
    seed: int,
    changed_files: Callable[..., list[str]],
    result_folder: Callable[[Path], Path],
) -> None:
    places, victim, twin = check(tmp_path, tokens_folder, environment, kills=5, steps=200, seed=seed)
    assert {*places} == {"in a save", "in a step"}
    assert changed_files(result_folder(victim), result_folder(twin)) == []
