"""When a rank stops, the others detect it, dump their stacks, kill it and exit."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cupola_trainer.config import (
    BatchConfig,
    CheckpointConfig,
    FaultConfig,
    LayoutConfig,
    ModelConfig,
    NextTokenData,
    TrainJob,
    write_job,
)
from cupola_trainer.reporting.metrics import read_metrics
from cupola_trainer.training.watchdog import Watchdog

HANG_SECONDS = 6.0


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, tokens_folder: Path, launcher: Any) -> Iterator[dict[str, Any]]:
    """Outcome of a job with two ranks of which the second was stopped after a few steps."""
    job = TrainJob(
        output=tmp_path_factory.mktemp("stopped"),
        model=ModelConfig(
            vocab_size=320, hidden_size=32, num_layers=1, num_attention_heads=2, num_query_groups=2, ffn_hidden_size=64,
            max_position_embeddings=32,
        ),
        steps=20_000,
        layout=LayoutConfig(dp=2),
        batch=BatchConfig(sequence_length=32, micro_batch_size=2, global_batch_size=4),
        data=NextTokenData(tokens=tokens_folder),
        checkpoint=CheckpointConfig(every=5),
        faults=FaultConfig(hang_seconds=HANG_SECONDS),
    )  # fmt: skip
    write_job(job, job.output / "job.json")
    command, environment = launcher(2)
    with (job.output / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "-m", "cupola_trainer", str(job.output / "job.json")], env=environment, stdout=log, stderr=log
        )
    try:
        wait_until(lambda: (job.output / "checkpoints" / "step_00000005").is_dir(), process)
        ranks = [rank for rank in psutil.Process(process.pid).children() if "cupola_trainer" in rank.cmdline()]
        victim = next(rank for rank in ranks if rank.environ()["RANK"] == "1")
        victim.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        code = process.wait(90)
        yield {
            "job": job, "code": code, "seconds": time.monotonic() - began, "ranks": ranks, "victim": victim.pid,
            "log": (job.output / "log").read_text(),
        }  # fmt: skip
    finally:
        process.kill()


def wait_until(true: Any, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(1200):
        if true():
            return
        assert process.poll() is None
        time.sleep(0.1)
    raise AssertionError("timed out")


@pytest.mark.slow
def test_a_stopped_rank_ends_the_job_within_its_timeout(stopped: dict[str, Any]) -> None:
    assert stopped["code"] != 0
    assert HANG_SECONDS - 1 < stopped["seconds"] < HANG_SECONDS + 30
    assert not any(
        rank.is_running() for rank in stopped["ranks"]
    )  # including the stopped one, which must not wake up and write


@pytest.mark.slow
def test_the_report_names_the_rank_and_the_log_has_the_live_ranks_stacks(stopped: dict[str, Any]) -> None:
    reason = json.loads((stopped["job"].output / "hang.json").read_text())["reason"]
    assert reason.startswith("rank 1 hangs at step ")
    assert "it does not respond, and no progress for" in reason
    assert "rank 0: the job hangs at step" in stopped["log"]
    assert "cupola_trainer/training/loop.py" in stopped["log"]
    assert "rank 1: the job hangs" not in stopped["log"]


@pytest.mark.slow
def test_an_earlier_checkpoint_is_there_to_resume_from(stopped: dict[str, Any]) -> None:
    steps = [line["step"] for line in read_metrics(stopped["job"].output / "metrics.jsonl") if line["event"] == "step"]
    assert steps == list(range(1, len(steps) + 1))
    assert max(path.name for path in (stopped["job"].output / "checkpoints").glob("step_*")) >= "step_00000005"


def test_pauses_and_beats_keep_the_watchdog_quiet(tmp_path: Path) -> None:
    watchdog = Watchdog(tmp_path, rank=0, seconds=0.4)
    watchdog.start()
    with watchdog.pause():
        time.sleep(1.0)
    for _ in range(5):
        time.sleep(0.2)
        watchdog.beat()
    watchdog.stop()
    assert not (tmp_path / "hang.json").exists()
    assert json.loads((tmp_path / "heartbeats" / "rank_00000.json").read_text())["pid"] > 0
