"""A run on a cluster outlives the command that started it, is attached to, cancelled, and never started twice."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.timeout(900)]
CLUSTER = """
[clusters.test]
launcher = "slurm"
nodes = 4
ranks_per_node = 1
interface = "lo"
"""
LONG = ("--set", "stages.pretrain.steps=600", "--set", "stages.pretrain.checkpoint.every=5")
ON = ("--run-on", "test", "--no-prefect")


@pytest.fixture
def on_cluster(cupola: Any, slurm: Any) -> Any:
    """The command on a machine whose cupola.toml names the test's cluster."""
    (cupola.workspace.parent / "cupola.toml").write_text(CLUSTER)
    return replace(cupola, variables=dict(slurm.environment))


def trained(cupola: Any) -> int:
    return max((event["step"] for event in cupola.events() if event["event"] == "step"), default=0)


def jobs(slurm: Any) -> list[str]:
    queue: str = slurm.ask("squeue", "--noheader", "--format=%i")
    return queue.split()


@pytest.mark.slow
def test_a_killed_command_leaves_its_job_and_the_same_command_attaches(
    on_cluster: Any, slurm: Any, recipe: Path, eventually: Any, undisturbed: Callable[..., dict[str, str]]
) -> None:
    first = on_cluster.start("run", str(recipe), *ON, *LONG)
    eventually(lambda: trained(on_cluster) >= 8, 300, "eight steps")
    psutil.Process(first.pid).kill()
    first.communicate()
    (job,) = jobs(slurm)
    rows = on_cluster.json("runs")
    assert [row["status"] for row in rows] == ["detached", "completed", "detached"]
    assert f"job {job} of cluster test" in rows[0]["error"]

    again = on_cluster("run", str(recipe), *ON, *LONG)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"attached to job {job} of cluster test" in again.stdout
    starts = [event["step"] for event in on_cluster.events() if event["event"] == "start"]
    assert starts == [0]
    assert {row["status"] for row in on_cluster.json("runs")} == {"completed", "reused", "continued"}
    assert on_cluster.published() == undisturbed(recipe, *LONG)


@pytest.mark.slow
def test_ctrl_c_ends_nothing_and_cancel_lets_the_job_save(
    on_cluster: Any, slurm: Any, recipe: Path, eventually: Any
) -> None:
    run = on_cluster.start("run", str(recipe), *ON, "--set", "stages.pretrain.steps=4000")
    eventually(lambda: trained(on_cluster) >= 4, 300, "four steps")
    second = on_cluster("run", str(recipe), *ON, "--set", "stages.pretrain.steps=4000")
    assert second.returncode == 1
    assert "stage pretrain is being run by" in second.stderr
    run.send_signal(signal.SIGINT)
    printed, _ = run.communicate(timeout=60)
    assert run.returncode == 130
    (job,) = jobs(slurm)
    stage = on_cluster.json("runs")[0]["id"]
    whole = on_cluster.json("runs")[2]["id"]
    assert f"job {job} of cluster test goes on. Follow it with cupola attach" in " ".join(printed.split())
    reached = trained(on_cluster)
    eventually(lambda: trained(on_cluster) > reached, 120, "more steps")

    follower = on_cluster.start("attach", stage, "--no-prefect")
    eventually(lambda: on_cluster.json("runs")[0]["status"] == "running", 120, "the follower's run")
    done = on_cluster("cancel", on_cluster.json("runs")[0]["id"])
    assert done.returncode == 0, done.stderr
    printed, _ = follower.communicate(timeout=60)
    assert follower.returncode == 130
    assert jobs(slurm) == []
    assert on_cluster.events()[-1]["status"] == "preempted"
    assert [row["status"] for row in on_cluster.json("runs")][:3] == ["cancelled", "reused", "cancelled"]
    refused = on_cluster("cancel", whole)
    assert refused.returncode == 2
    assert f"Run {whole} is continued as run " in refused.stderr


@pytest.mark.slow
def test_a_detached_run_is_cancelled_without_a_follower(
    on_cluster: Any, slurm: Any, recipe: Path, eventually: Any
) -> None:
    run = on_cluster.start("run", str(recipe), *ON, "--set", "stages.pretrain.steps=4000")
    eventually(lambda: trained(on_cluster) >= 2, 300, "two steps")
    os.kill(run.pid, signal.SIGTERM)
    run.communicate(timeout=60)
    whole = on_cluster.json("runs")[2]["id"]
    done = on_cluster("cancel", whole)
    assert done.returncode == 0, done.stderr
    assert "has ended" in done.stdout
    assert jobs(slurm) == []
    events = on_cluster.events()
    assert events[-1]["status"] == "preempted"
    assert [row["status"] for row in on_cluster.json("runs")] == ["cancelled", "completed", "cancelled"]
    assert not list(on_cluster.workspace.glob("work/*/job/handle.json")), "the ended job is forgotten"


@pytest.mark.slow
@pytest.mark.parametrize("where", ["in a step", "in a save"])
def test_a_node_lost_in_training_changes_nothing(
    where: str, on_cluster: Any, slurm: Any, recipe: Path, eventually: Any, undisturbed: Callable[..., dict[str, str]]
) -> None:
    run = on_cluster.start("run", str(recipe), *ON, *LONG)
    if where == "in a step":
        eventually(lambda: trained(on_cluster) >= 8, 300, "eight steps")
    else:
        partial = "work/*/job/checkpoints/.step_*.partial"
        eventually(lambda: any(on_cluster.workspace.glob(partial)), 300, "a checkpoint being written")
    node = slurm.ask("squeue", "--noheader", "--format=%N")
    lost = 2 if node == "n[1-2]" else pytest.fail(f"the job runs on {node}")
    slurm.kill_node(lost)
    printed, _ = run.communicate(timeout=600)
    assert run.returncode == 0, printed
    starts = [event["step"] for event in on_cluster.events() if event["event"] == "start"]
    assert len(starts) == 2
    assert on_cluster.published() == undisturbed(recipe, *LONG)
    slurm.start_node(lost)
    eventually(lambda: "down" not in slurm.ask("sinfo", "-h", "-o", "%T"), 60, "the node")
