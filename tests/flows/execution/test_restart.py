"""A job that hangs or crashes is restarted from its newest checkpoint, a bounded number of times."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cupola_flows.execution import restarts
from cupola_platform.launch import starts
from cupola_trainer.config import BatchConfig, FaultConfig, NextTokenData, TrainJob
from cupola_trainer.training.watchdog import Watchdog

Eventually = Callable[[Callable[[], bool], float, str], None]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stopped_rank_is_detected_and_the_job_restarts_from_its_newest_checkpoint(
    cupola: Any, recipe: Path, eventually: Eventually, undisturbed: Callable[..., dict[str, str]]
) -> None:
    sizes = ("steps=400", "checkpoint.every=5", "faults.hang_seconds=12", "faults.max_restarts=1")
    overrides = [word for size in sizes for word in ("--set", f"stages.pretrain.{size}")]
    run = cupola.start("run", str(recipe), "--no-prefect", *overrides)

    def steps() -> list[int]:
        return [event["step"] for event in cupola.events() if event["event"] == "step"]

    eventually(lambda: max(steps(), default=0) >= 12, 300, "twelve steps")
    next(process for process in cupola.processes() if process.environ().get("RANK") == "1").send_signal(signal.SIGSTOP)
    printed, _ = run.communicate(timeout=600)
    assert run.returncode == 0, printed
    restart = next(event for event in cupola.events() if event["event"] == "restart")
    assert (restart["attempt"], restart["of"]) == (1, 1)
    assert restart["reason"].startswith("rank 1 hangs at step ")
    assert f"restart 1 of 1: {restart['reason']}" in printed
    log = next(path for path in (cupola.workspace / "logs").glob("pretrain-*.log")).read_text()
    assert f"cupola: restart 1 of 1: {restart['reason']}" in log
    assert "the stacks of this rank:" in log
    assert steps() == list(range(1, 401))
    assert cupola.processes() == []
    assert cupola.published() == undisturbed(recipe, *overrides)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_that_keeps_crashing_is_restarted_by_prefect_only_as_often_as_allowed(
    cupola: Any, recipe: Path, eventually: Eventually
) -> None:
    sizes = ("steps=4000", "checkpoint.every=5", "faults.max_restarts=1")
    run = cupola.start("run", str(recipe), *(word for size in sizes for word in ("--set", f"stages.pretrain.{size}")))

    def starts() -> int:
        return sum(event["event"] == "start" for event in cupola.events())

    for number in (1, 2):
        eventually(lambda: starts() == number, 300, f"start {number}")  # noqa: B023 - called immediately
        next(process for process in cupola.processes() if process.environ().get("RANK") == "1").kill()
    printed, _ = run.communicate(timeout=300)
    assert run.returncode == 1
    assert "its processes ended with status 1; started 2 times. Log: " in printed
    assert starts() == 2
    assert cupola.processes() == []


def job_in(output: Path) -> TrainJob:
    return TrainJob(
        output=output,
        steps=1,
        batch=BatchConfig(sequence_length=32),
        data=NextTokenData(tokens=output),
        faults=FaultConfig(hang_seconds=1.0),
    )


def test_the_follower_detects_that_no_rank_responds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "SLACK", -0.9)  # 0.1 s of silence is enough
    follower = restarts.Follower(job_in(tmp_path))
    assert follower.silence() is None
    heartbeats = tmp_path / "heartbeats"
    heartbeats.mkdir()
    for beat in range(3):
        for rank in ("rank_00000.json", "rank_00001.json"):
            (heartbeats / rank).write_text(f'{{"beat": {beat}}}')
            an_hour_ago = time.time() - 3600
            os.utime(heartbeats / rank, (an_hour_ago, an_hour_ago))  # the clock was changed, or is another machine's
        assert follower.silence() is None
        time.sleep(0.15)
    (heartbeats / "rank_00001.json").write_text('{"beat": 3}')
    assert follower.silence() is None, "one rank responds"
    time.sleep(0.15)
    assert follower.silence() == "no rank has responded for 0 s"


def test_ranks_with_heartbeats_are_not_silent_even_if_their_clocks_differ(tmp_path: Path) -> None:
    watchdog = Watchdog(tmp_path, rank=0, seconds=1.0)
    watchdog.start()
    other = tmp_path / "heartbeats" / "rank_00001.json"
    with watchdog.pause():  # no progress here; the other rank is on a machine whose clock is an hour behind
        for beat in range(30):
            other.write_text(f'{{"beat": {beat}}}')
            os.utime(other, (time.time() - 3600, time.time() - 3600))
            time.sleep(0.05)
        assert watchdog._silent() == []
        time.sleep(1.0)
        assert watchdog._silent() == [other]
    watchdog.stop()


def test_a_restart_is_recorded_in_the_metrics_and_its_hang_report_removed(tmp_path: Path) -> None:
    (tmp_path / "hang.json").write_text(json.dumps({"reason": "rank 1 hangs"}))
    (tmp_path / "metrics.jsonl").write_text('{"event": "step", "time": 1.0, "step": 7}\n')
    assert restarts.hang_of(job_in(tmp_path)) == "rank 1 hangs"
    restarts.record(job_in(tmp_path), 1, "rank 1 hangs")
    starts.clear(tmp_path)
    assert restarts.hang_of(job_in(tmp_path)) is None
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last | {"time": 0} == {
        "event": "restart", "time": 0, "step": 7, "attempt": 1, "of": 2, "reason": "rank 1 hangs",
    }  # fmt: skip
