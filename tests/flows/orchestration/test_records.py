"""After a SIGKILL of a run or of everything, and after `cupola down`, the registry, Prefect and MLflow agree on what
happened."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

Eventually = Callable[[Callable[[], bool], float, str], None]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]  # all servers, twice
LONG = ("--set", "stages.pretrain.steps=20000", "--set", "stages.pretrain.checkpoint.every=10")


@pytest.fixture
def servers(cupola: Any, recipe: Path) -> Iterator[None]:
    assert cupola("up", timeout=500).returncode == 0
    assert cupola("deploy", str(recipe)).returncode == 0
    yield
    cupola("down")


def rows(cupola: Any, database: str, query: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(cupola.workspace / database)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def prefect(cupola: Any) -> list[tuple[str, str]]:
    """Each flow run's flow and state, oldest first."""
    query = "select flow.name, state_type from flow_run join flow on flow.id = flow_id order by flow_run.created"
    return rows(cupola, "prefect/prefect.db", query)


def registry(cupola: Any) -> list[tuple[str, str]]:
    return rows(cupola, "registry.db", "select stage, status from run order by started")


def mlflow(cupola: Any) -> list[tuple[str, str]]:
    return rows(cupola, "mlflow.db", "select name, status from runs order by start_time")


def engines(cupola: Any) -> list[psutil.Process]:
    """The processes in which the worker executes runs."""
    return [process for process in cupola.processes() if "prefect.engine" in process.cmdline()]


def starts(cupola: Any) -> int:
    return sum(event["event"] == "start" for event in cupola.events())


def trained(cupola: Any) -> int:
    return max((event["step"] for event in cupola.events() if event["event"] == "step"), default=0)


def test_a_killed_run_is_restarted_once_and_nothing_stays_running_after_everything_is_killed(
    cupola: Any, recipe: Path, servers: None, eventually: Eventually
) -> None:
    cupola.json("submit", str(recipe), *LONG)
    eventually(lambda: trained(cupola) > 20, 400, "training")
    (engine,) = engines(cupola)
    engine.kill()
    eventually(lambda: starts(cupola) == 2, 300, "a second start")
    assert len(engines(cupola)) == 1
    assert prefect(cupola) == [
        ("lifecycle", "RUNNING"), ("prepare", "COMPLETED"), ("pretrain", "CRASHED"), ("prepare", "COMPLETED"),
        ("pretrain", "RUNNING"),
    ]  # fmt: skip

    for process in cupola.processes():
        process.kill()
    assert [state for _, state in prefect(cupola)].count("RUNNING") == 2
    assert cupola("up", timeout=500).returncode == 0
    eventually(lambda: "RUNNING" not in {state for _, state in prefect(cupola)}, 60, "no run without a process")
    assert prefect(cupola) == [
        ("lifecycle", "CRASHED"), ("prepare", "COMPLETED"), ("pretrain", "CRASHED"), ("prepare", "COMPLETED"),
        ("pretrain", "CRASHED"),
    ]  # fmt: skip
    eventually(lambda: len(mlflow(cupola)) == 6 and "RUNNING" not in {s for _, s in mlflow(cupola)}, 60, "MLflow's end")
    assert registry(cupola) == [
        ("", "failed"), ("prepare", "completed"), ("pretrain", "failed"), ("", "failed"), ("prepare", "reused"),
        ("pretrain", "failed"),
    ]  # fmt: skip
    assert [status for _, status in mlflow(cupola)] == ["FAILED", "FINISHED", "FAILED", "FAILED", "FINISHED", "FAILED"]
    eventually(lambda: not list((cupola.workspace / "spool").iterdir()), 30, "an empty spool")


def test_down_cancels_a_run_in_every_record_during_training_and_during_preparation(
    cupola: Any, recipe: Path, texts: Path, servers: None, eventually: Eventually
) -> None:
    cupola.json("submit", str(recipe), *LONG)
    eventually(lambda: trained(cupola) > 2, 400, "training")
    down = cupola("down")
    assert down.stdout.splitlines() == [
        f"Cancelled run {recipe}. Finished work is kept. Run the same command to resume.",
        "Stopped sweeper, worker, console, mlflow, prefect.",
    ]
    assert cupola.processes() == []
    assert cupola.events()[-1]["status"] == "preempted"
    assert prefect(cupola) == [("lifecycle", "CANCELLED"), ("prepare", "COMPLETED"), ("pretrain", "CANCELLED")]
    assert registry(cupola) == [("", "cancelled"), ("prepare", "completed"), ("pretrain", "cancelled")]
    assert [status for _, status in mlflow(cupola)] == ["KILLED", "FINISHED", "KILLED"]

    for number in range(400):  # enough to catch the preparation halfway
        (texts / f"more-{number}.py").write_text(
            (texts / "email-message.py").read_text().replace("def ", f"def f{number}_")
        )
    assert cupola("up", timeout=500).returncode == 0
    cupola.json("submit", str(recipe), *LONG)
    eventually(lambda: ("prepare", "running") in registry(cupola), 200, "the preparation")
    down = cupola("down")
    assert down.stdout.startswith("Cancelled run ")
    assert cupola.processes() == []
    assert prefect(cupola)[3:] == [("lifecycle", "CANCELLED"), ("prepare", "CANCELLED")]
    assert registry(cupola)[3:] == [("", "cancelled"), ("prepare", "cancelled")]
    assert [status for _, status in mlflow(cupola)][3:] == ["KILLED", "KILLED"]
