"""Slurm jobs go on after lost nodes, failed ranks, time limits, requeues, preemption and a restarted controller."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cupola_platform.clusters import SlurmCluster
from cupola_platform.launch.slurm.launcher import SlurmLauncher

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CLUSTER = SlurmCluster(launcher="slurm", nodes=4, ranks_per_node=1, interface="lo")
RANK = """
import json, os, signal, sys, time
from pathlib import Path
job = json.loads(Path(sys.argv[1]).read_text())
folder, rank = Path(job["output"]), os.environ["RANK"]
def save(*_):
    if rank == "0":
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"event": "end", "status": "preempted"}\\n')
        (folder / "checkpoints" / f"step_{time.time_ns()}").mkdir(parents=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
with (folder / f"starts-{rank}").open("a") as file:
    file.write(f"{os.environ['WORLD_SIZE']} {os.environ['SLURMD_NODENAME']}\\n")
while not (folder / "finish").exists():
    if (folder / f"fail-{rank}").exists():
        (folder / f"fail-{rank}").unlink()
        sys.exit(9)
    time.sleep(0.1)
(folder / "result.json").write_text("{}")
"""
"""Stands for the trainer, which saves when asked to: it runs until a file appears, and notes each of its starts."""


@pytest.fixture
def started(tmp_path: Path, slurm: Any, on_slurm: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Starts a job of two ranks, with a smaller layout if one is given."""
    (tmp_path / "rank_of_test.py").write_text(RANK)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    folder = tmp_path / "job"
    folder.mkdir()
    for name in ("job.json", "job-1.json"):
        (folder / name).write_text(json.dumps({"output": str(folder)}))

    def start(fallback: int | None = None, restarts: int = 2, processes: int = 2, **changes: Any) -> Any:
        fallbacks = [(folder / "job-1.json", fallback)] if fallback else []
        launcher = SlurmLauncher("test", CLUSTER.but(**changes), module="rank_of_test")
        return launcher.start(
            folder / "job.json", processes=processes, log=tmp_path / "log", fallbacks=fallbacks, restarts=restarts
        )

    yield start
    slurm.heal()


def starts(job: Any, rank: int = 0) -> list[str]:
    """World size and node of each start of a rank."""
    path = job.folder / f"starts-{rank}"
    return path.read_text().splitlines() if path.exists() else []


def finish(job: Any) -> None:
    (job.folder / "finish").touch()
    assert job.wait(240) == 0, (job.folder.parent / "log").read_text()


@pytest.mark.parametrize("which", ["first", "second"])
def test_a_lost_node_is_replaced(which: str, slurm: Any, started: Callable[..., Any], eventually: Any) -> None:
    job = started()
    eventually(lambda: len(starts(job)) == len(starts(job, 1)) == 1, 120, "the first start")
    nodes = sorted(starts(job, rank)[0].split()[1] for rank in (0, 1))
    lost = nodes[0] if which == "first" else nodes[1]  # the batch step runs on the first one
    slurm.kill_node(int(lost[1:]))
    eventually(lambda: len(starts(job)) == len(starts(job, 1)) == 2, 400, "the second start")
    finish(job)
    assert lost not in {starts(job, rank)[1].split()[1] for rank in (0, 1)}


def test_where_too_few_nodes_are_left_the_next_layout_runs(
    slurm: Any, started: Callable[..., Any], eventually: Any
) -> None:
    job = started(processes=4, fallback=2)
    eventually(lambda: all(len(starts(job, rank)) == 1 for rank in range(4)), 120, "the first start")
    slurm.kill_node(4)
    eventually(lambda: len(starts(job)) == 2, 400, "the second start")
    finish(job)
    assert [line.split()[0] for line in starts(job)] == ["4", "2"]


def test_a_waiting_job_makes_do_with_the_nodes_that_are_left(
    slurm: Any, started: Callable[..., Any], eventually: Any
) -> None:
    slurm.kill_node(4)
    eventually(lambda: "down" in slurm.ask("sinfo", "-h", "-N", "-n", "n4", "-o", "%T"), 120, "the lost node")
    job = started(processes=4, fallback=2)
    eventually(lambda: job.poll() is None and len(starts(job)) == 1, 300, "the start")
    finish(job)
    assert starts(job)[0].startswith("2 ")


def test_failed_ranks_start_again_as_often_as_allowed(started: Callable[..., Any], eventually: Any) -> None:
    job = started(restarts=1)
    for count in (1, 2):
        eventually(lambda count=count: len(starts(job, 1)) == count, 120, f"start {count}")
        (job.folder / "fail-1").touch()
    assert job.wait(300) == 1
    assert len(starts(job)) == 2
    events = [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]
    restarts = [(line["attempt"], line["of"]) for line in events if line["event"] == "restart"]
    assert restarts == [(1, 1)]


def test_a_job_saves_ahead_of_its_time_limit_and_goes_back_into_the_queue(
    started: Callable[..., Any], eventually: Any
) -> None:
    job = started(time_limit="3", save_ahead=60, restarts=0)  # Slurm may send the signal a minute earlier
    eventually(lambda: len(starts(job)) == 2, 600, "the second start")
    assert '"preempted"' in (job.folder / "metrics.jsonl").read_text()
    assert "the time is up: back into the queue" in (job.folder.parent / "log").read_text()
    finish(job)


def test_a_requeued_and_a_preempted_job_start_again(slurm: Any, started: Callable[..., Any], eventually: Any) -> None:
    job = started(restarts=1)
    eventually(lambda: len(starts(job, 1)) == 1, 120, "the first start")
    slurm.ask("scontrol", "requeue", job.number)
    eventually(lambda: len(starts(job, 1)) == 2, 400, "the start after the requeue")
    urgent = slurm.ask(
        "sbatch", "--parsable", "-p", "urgent", "-N4", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 5"
    )
    eventually(lambda: slurm.ask("squeue", "-h", "-j", urgent, "-o", "%T") == "RUNNING", 120, "the urgent job")
    assert job.poll() is None
    eventually(lambda: len(starts(job, 1)) == 3, 400, "the start after the preemption")
    finish(job)


def test_a_restarted_controller_and_a_drained_node_disturb_nothing(
    slurm: Any, started: Callable[..., Any], eventually: Any
) -> None:
    slurm.ask("scontrol", "update", "nodename=n1", "state=drain", "reason=broken fan")
    job = started()
    eventually(lambda: len(starts(job)) == len(starts(job, 1)) == 1, 120, "the first start")
    assert "n1" not in starts(job)[0]
    slurm.restart_controller()
    assert job.poll() is None
    finish(job)
    assert len(starts(job)) == 1
