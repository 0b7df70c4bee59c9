"""A job that is killed, terminated or finds a torn checkpoint resumes bit for bit as if uninterrupted."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from cupola_trainer.config import (
    BatchConfig,
    CheckpointConfig,
    LayoutConfig,
    ModelConfig,
    MoEConfig,
    NextTokenData,
    OptimizerConfig,
    TrainJob,
    write_job,
)
from cupola_trainer.reporting.metrics import read_metrics

STEPS = 24
MODEL = ModelConfig(
    vocab_size=320,
    hidden_size=64,
    num_layers=2,
    num_attention_heads=4,
    num_query_groups=2,
    ffn_hidden_size=96,
    max_position_embeddings=64,
    moe=MoEConfig(num_experts=4, expert_ffn_hidden_size=48, shared_expert_ffn_hidden_size=48, aux_loss_coeff=0.01),
)


def job_in(output: Path, tokens: Path) -> TrainJob:
    return TrainJob(
        output=output,
        seed=3,
        model=MODEL,
        steps=STEPS,
        layout=LayoutConfig(dp=2, ep=2),
        optimizer=OptimizerConfig(lr=2e-3, warmup_steps=3),
        batch=BatchConfig(sequence_length=64, micro_batch_size=2, global_batch_size=8),
        data=NextTokenData(tokens=tokens),
        checkpoint=CheckpointConfig(every=5, keep=3),
        evaluate_every=10,
        evaluate_batches=1,
    )


def start(job: TrainJob, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    job.output.mkdir(parents=True, exist_ok=True)
    write_job(job, job.output / "job.json")
    log = (job.output / "log").open("ab")
    arguments = [*command, "-m", "cupola_trainer", str(job.output / "job.json")]
    return subprocess.Popen(arguments, env=environment, stdout=log, stderr=subprocess.STDOUT)


def wait_for_step(job: TrainJob, step: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until this start of the job reports the step."""
    for _ in range(2400):
        if any(line["event"] == "step" and line["step"] >= step for line in read_metrics(job.output / "metrics.jsonl")):
            return
        assert process.poll() is None, (job.output / "log").read_text()[-3000:]
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached: {(job.output / 'log').read_text()[-3000:]}")


def ranks_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [child for child in psutil.Process(process.pid).children() if "cupola_trainer" in child.cmdline()]


def numbers(output: Path) -> list[tuple[Any, ...]]:
    """The metrics that must be equal bit for bit (JSON keeps the exact value of floats)."""
    names = ("event", "step", "loss", "aux_loss", "grad_norm", "lr", "consumed_samples", "heldout_loss")
    lines = read_metrics(output / "metrics.jsonl")
    return [tuple(line.get(name) for name in names) for line in lines if line["event"] in ("step", "evaluate")]


def read_samples(output: Path) -> list[list[int]]:
    """The samples read in each step by all data-parallel ranks together."""
    steps: dict[int, list[int]] = {}
    for path in (output / "samples").glob("dp_*.jsonl"):
        for line in read_metrics(path):
            steps.setdefault(line["step"], []).extend(i for first, end in line["ranges"] for i in range(first, end))
    return [sorted(steps[step]) for step in sorted(steps)]


def weights(output: Path) -> dict[str, torch.Tensor]:
    from cupola_trainer import checkpoint, models, runtime

    runtime.start(LayoutConfig(), seed=0)
    chunks = models.build(MODEL, LayoutConfig())
    checkpoint.load_weights(output / json.loads((output / "result.json").read_text())["folder"], chunks)
    return dict(chunks[0].named_parameters())


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory, tokens_folder: Path, launcher: Any) -> Path:
    """An uninterrupted run."""
    job = job_in(tmp_path_factory.mktemp("twin"), tokens_folder)
    assert start(job, *launcher(2)).wait(200) == 0, (job.output / "log").read_text()[-3000:]
    return job.output


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory, tokens_folder: Path, launcher: Any) -> Path:
    """The same job: a rank is killed, then the launcher is terminated, then it runs to the end."""
    job = job_in(tmp_path_factory.mktemp("interrupted"), tokens_folder)

    process = start(job, *launcher(2))
    wait_for_step(job, 7, process)
    ranks = ranks_of(process)
    assert len(ranks) == 2
    ranks[1].send_signal(signal.SIGKILL)
    assert process.wait(60) != 0
    assert not any(rank.is_running() for rank in ranks)

    process = start(job, *launcher(2))
    wait_for_step(job, 12, process)
    ranks = ranks_of(process)
    terminated_at = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) != 0
    assert time.monotonic() - terminated_at < 30
    assert not any(rank.is_running() for rank in ranks)

    assert start(job, *launcher(2)).wait(200) == 0, (job.output / "log").read_text()[-3000:]
    return job.output


def test_losses_gradient_norms_and_heldout_losses_equal_the_twins_bit_for_bit(twin: Path, interrupted: Path) -> None:
    assert len(numbers(twin)) == STEPS + 4  # held-out losses: before training, at 10, at 20, after the last step
    assert numbers(interrupted) == numbers(twin)


def test_the_final_weights_equal_the_twins_bit_for_bit(twin: Path, interrupted: Path) -> None:
    expected, actual = weights(twin), weights(interrupted)
    assert expected.keys() == actual.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_the_published_artifact_is_the_twins(
    twin: Path, interrupted: Path, changed_files: Callable[..., list[str]], result_folder: Callable[[Path], Path]
) -> None:
    assert changed_files(result_folder(interrupted), result_folder(twin)) == []


def test_metrics_record_every_start_and_end(interrupted: Path) -> None:
    lines = read_metrics(interrupted / "metrics.jsonl")
    starts = [line["step"] for line in lines if line["event"] == "start"]
    ends = [(line["step"], line["status"]) for line in lines if line["event"] == "end"]
    assert starts[:2] == [0, 5]
    assert len(starts) == 3
    assert starts[2] == ends[0][0] >= 12
    assert ends == [(starts[2], "preempted"), (STEPS, "completed")]
    assert lines[0] == lines[0] | {"kind": "train", "steps": STEPS, "world_size": 2}


def test_the_newest_checkpoints_are_kept_and_the_result_names_the_last_one(interrupted: Path) -> None:
    assert max(path.name for path in (interrupted / "checkpoints").iterdir()) == "step_00000024"
    assert len(list((interrupted / "checkpoints").glob("step_*"))) == 3
    result = json.loads((interrupted / "result.json").read_text())
    assert result["folder"] == "checkpoints/step_00000024"
    assert result["metrics"]["tokens_seen"] == STEPS * 8 * 64
    assert result["metrics"]["final_heldout_loss"] < result["metrics"]["initial_heldout_loss"]


def test_a_torn_checkpoint_is_set_aside_and_the_job_resumes_in_another_layout(
    twin: Path, tmp_path: Path, tokens_folder: Path, launcher: Any
) -> None:
    shutil.copytree(twin, tmp_path / "moved")
    job = job_in(tmp_path / "moved", tokens_folder).but(layout=LayoutConfig(tp=2, sp=True, ep=2))
    (job.output / "result.json").unlink()
    (job.output / "log").unlink()
    torn = max((job.output / "checkpoints" / "step_00000024" / "state").glob("*.bin"))
    os.truncate(torn, torn.stat().st_size - 1)
    assert start(job, *launcher(2)).wait(200) == 0, (job.output / "log").read_text()[-3000:]
    assert (job.output / "checkpoints" / "torn" / "step_00000024").is_dir()
    assert "step_00000024 set aside under torn/: " in (log := (job.output / "log").read_text())
    assert torn.name in log
    assert read_samples(job.output) == read_samples(twin) == [list(range(8 * s, 8 * s + 8)) for s in range(STEPS)]
    assert len(list((job.output / "samples").iterdir())) == 2  # two data-parallel ranks before, one since
    expected, actual = (
        {line[1]: line for line in numbers(output) if line[0] == "step"} for output in (twin, job.output)
    )
    for step in range(21, STEPS + 1):
        assert actual[step][2] == pytest.approx(expected[step][2], rel=1e-4)
        assert actual[step][4] == pytest.approx(expected[step][4], rel=1e-3)


@pytest.mark.slow
def test_killing_the_launcher_leaves_no_rank_running(tmp_path: Path, tokens_folder: Path, launcher: Any) -> None:
    job = job_in(tmp_path, tokens_folder).but(steps=10_000)
    process = start(job, *launcher(2))
    wait_for_step(job, 1, process)
    ranks = ranks_of(process)
    process.kill()
    process.wait(10)
    gone, alive = psutil.wait_procs(ranks, timeout=10)
    assert len(gone) == 2
    assert not alive
