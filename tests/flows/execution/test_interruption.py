"""Runs that are cancelled, killed or crash: nothing keeps running, nothing is lost, and the same command resumes and
publishes what an undisturbed run does."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cupola_flows.runs import work_folders
from cupola_platform.errors import StageFailedError

LONG = ("--set", "stages.pretrain.steps=4000", "--set", "stages.pretrain.checkpoint.every=5")
Eventually = Callable[[Callable[[], bool], float, str], None]
pytestmark = pytest.mark.timeout(900)


def trained(cupola: Any) -> int:
    return max((event["step"] for event in cupola.events() if event["event"] == "step"), default=0)


@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_cancelled_run_saves_leaves_no_process_and_resumes(
    cupola: Any, recipe: Path, eventually: Eventually, how: signal.Signals
) -> None:
    run = cupola.start("run", str(recipe), "--no-prefect", *LONG)
    eventually(lambda: trained(cupola) >= 8, 200, "eight steps")
    run.send_signal(how)
    printed, _ = run.communicate(timeout=30)
    assert run.returncode == 130
    assert "Run the same command to resume" in printed
    assert cupola.processes() == []
    events = cupola.events()
    assert events[-1]["status"] == "preempted"
    reached = events[-1]["step"]
    assert [row["status"] for row in cupola.json("runs")] == ["cancelled", "completed", "cancelled"]

    steps = str(reached + 3)
    alone = ("--set", "stages.pretrain.layout={tp: 1}")  # two ranks before: the same stage on half of the machine
    again = cupola.start("run", str(recipe), "--no-prefect", *LONG, *alone)
    eventually(lambda: trained(cupola) > reached, 200, f"step {steps}")
    again.send_signal(how)
    again.communicate(timeout=30)
    starts = [(event["step"], event["world_size"]) for event in cupola.events() if event["event"] == "start"]
    assert starts == [(0, 2), (reached, 1)]


@pytest.mark.slow
def test_a_crash_names_the_log_keeps_finished_work_and_the_same_command_resumes(
    cupola: Any, recipe: Path, eventually: Eventually, undisturbed: Callable[..., dict[str, str]]
) -> None:
    run = cupola.start("run", str(recipe), "--no-prefect", "--set", "stages.pretrain.steps=60", *LONG[2:])
    eventually(lambda: trained(cupola) >= 12, 200, "twelve steps")
    rank = next(process for process in cupola.processes() if process.environ().get("RANK") == "1")
    rank.kill()
    printed, _ = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "cupola: error: stage pretrain: its processes ended with status 1. Log: " in printed
    assert "prepare" in printed
    assert cupola.processes() == []

    again = cupola("run", str(recipe), "--no-prefect", "--set", "stages.pretrain.steps=60", *LONG[2:])
    assert again.returncode == 0, again.stderr
    assert "reused" in again.stdout
    starts = [event["step"] for event in cupola.events() if event["event"] == "start"]
    assert starts[0] == 0
    assert starts[1] >= 10
    steps = [event["step"] for event in cupola.events() if event["event"] == "step"]
    assert steps == list(range(1, 61))
    assert cupola.published() == undisturbed(recipe, "--set", "stages.pretrain.steps=60")


@pytest.mark.slow
def test_a_machine_that_loses_power_repeatedly_publishes_what_an_undisturbed_one_does(
    cupola: Any, recipe: Path, eventually: Eventually, power_cut: Any, undisturbed: Callable[..., dict[str, str]]
) -> None:
    sizes = ("--set", "stages.pretrain.steps=200", "--set", "stages.pretrain.checkpoint.every=5")
    machine = replace(cupola, variables=power_cut.environment)
    work, draw = cupola.workspace / "work", random.Random(6)

    def tasks() -> int:
        return len([*work.glob("*/**/completions/*")])

    places: list[Callable[[], bool]] = [
        lambda: tasks() >= 2, lambda: tasks() >= 9, lambda: trained(cupola) >= 8, lambda: trained(cupola) >= 40,
    ]  # fmt: skip
    for reached in places:
        run = machine.start("run", str(recipe), "--no-prefect", *sizes)
        eventually(reached, 200, "the point of the power cut")
        time.sleep(draw.uniform(0, 0.5))
        assert run.poll() is None
        for process in cupola.processes():
            process.kill()
        run.communicate()
        power_cut.strike(work, cupola.workspace / "store")
    done = cupola("run", str(recipe), "--no-prefect", *sizes)
    assert done.returncode == 0, done.stderr
    assert cupola.published() == undisturbed(recipe, *sizes)


@pytest.mark.slow  # most of a minute
def test_a_second_run_of_a_stage_is_refused_and_killing_the_launcher_of_the_first_leaves_no_rank(
    cupola: Any, recipe: Path, eventually: Eventually
) -> None:
    first = cupola.start("run", str(recipe), "--no-prefect", *LONG)
    eventually(lambda: trained(cupola) >= 1, 200, "a step")
    second = cupola("run", str(recipe), "--no-prefect", *LONG)
    assert second.returncode == 1
    assert "is being run by another process" in second.stderr
    assert first.poll() is None
    first.kill()
    first.communicate()
    eventually(lambda: cupola.processes() == [], 30, "no process")
    assert "failed (lost)" in {row["status"] for row in cupola.json("runs")}


def test_a_stage_waits_for_processes_that_a_killed_run_left_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "work" / "f"
    program = "import time; time.sleep(600)"
    rank = subprocess.Popen(
        [sys.executable, "-c", program, str(folder / "job" / "job.json")], env={**os.environ, "CUPOLA_JOB_TAG": "a"}
    )
    said: list[str] = []
    try:
        time.sleep(0.5)
        monkeypatch.setattr(work_folders, "REMAINS_PATIENCE", 0.5)
        with (
            pytest.raises(
                StageFailedError, match=rf"^stage sft: processes {rank.pid} of a killed run are still working in "
            ),
            work_folders.locked(folder, "sft", said.append),
        ):
            pass
        monkeypatch.setattr(work_folders, "REMAINS_PATIENCE", 60.0)
        threading.Timer(1.0, rank.kill).start()
        with work_folders.locked(folder, "sft", said.append):
            assert rank.poll() is not None
    finally:
        rank.kill()
        rank.wait()
    assert said == [f"stage sft: waiting for processes of a killed run in {folder} to save and exit."] * 2


def test_an_invalid_recipe_is_refused_before_anything_is_made(cupola: Any, recipe: Path) -> None:
    done = cupola("run", str(recipe), "--set", "stages.pretrain.layout.tp=8")
    assert done.returncode == 2
    assert done.stderr.startswith("cupola: error: stages.pretrain: The job needs 8 processes")
    assert done.stderr.count("\n") == 1
    assert cupola.json("runs") == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_under_prefect_a_crashed_job_is_retried_and_losing_the_server_costs_no_result_and_no_time(
    cupola: Any, recipe: Path, eventually: Eventually, undisturbed: Callable[..., dict[str, str]]
) -> None:
    sizes = ("--set", "stages.pretrain.steps=400", "--set", "stages.pretrain.checkpoint.every=5")
    run = cupola.start("run", str(recipe), *sizes)
    eventually(lambda: trained(cupola) >= 12, 300, "twelve steps")
    next(process for process in cupola.processes() if process.environ().get("RANK") == "1").kill()
    eventually(lambda: sum(event["event"] == "start" for event in cupola.events()) == 2, 120, "a second start")
    next(
        process
        for process in cupola.processes()
        if process.cmdline()[1:3] == ["-m", "cupola_flows.servers.prefect_server"]
    ).kill()
    eventually(lambda: cupola.events()[-1]["event"] == "end", 400, "the job's end")
    began = time.monotonic()
    printed, _ = run.communicate(timeout=600)
    assert time.monotonic() - began < 60  # 20 on an idle machine; 152 when every call was tried four times
    assert run.returncode == 0, printed
    assert printed.count("Prefect's server does not respond") == 1
    assert [event["step"] for event in cupola.events() if event["event"] == "step"] == list(range(1, 401))
    assert {row["stage"]: row["status"] for row in cupola.json("runs")} == {
        "(all)": "completed", "pretrain": "completed", "prepare": "completed",
    }  # fmt: skip
    assert cupola.published() == undisturbed(recipe, *sizes)
    assert cupola.processes() == []

    assert set(states(cupola)) == {"RUNNING", "COMPLETED"}, "the server was gone"
    next_run = cupola("run", str(recipe), "--set", "stages.pretrain.steps=5")
    assert next_run.returncode == 0, next_run.stderr
    assert set(states(cupola)) == {"COMPLETED"}, "as the registry has it"


def states(cupola: Any) -> list[str]:
    """State of every flow run in Prefect's database."""
    connection = sqlite3.connect(cupola.workspace / "prefect" / "prefect.db")
    try:
        return [state for (state,) in connection.execute("select state_type from flow_run")]
    finally:
        connection.close()
