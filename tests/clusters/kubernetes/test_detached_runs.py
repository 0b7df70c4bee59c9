"""A run on the stand-in for a Kubernetes cluster outlives its command, by the trainer's own ranks."""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.clusters.kubernetes.standin_cluster import Cluster

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]
SETTINGS = """
[clusters.test]
launcher = "kubernetes"
nodes = 4
ranks_per_node = 1
interface = "lo"
namespace = "train"
image = "cupola:test"
volume = "workspace"
python = "{python}"
environment = {{ PYTHONPATH = "{path}" }}
"""
LONG = ("--set", "stages.pretrain.steps=150", "--set", "stages.pretrain.checkpoint.every=5")
ON = ("--run-on", "test", "--no-prefect")


@pytest.fixture
def on_cluster(cupola: Any, kubeconfig: Any) -> Any:
    """The command on a machine whose cupola.toml names the stand-in."""
    settings = SETTINGS.format(python=sys.executable, path=os.environ.get("PYTHONPATH", ""))
    (cupola.workspace.parent / "cupola.toml").write_text(settings)
    return replace(cupola, variables={"KUBECONFIG": os.environ["KUBECONFIG"]})


def trained(cupola: Any) -> int:
    return max((event["step"] for event in cupola.events() if event["event"] == "step"), default=0)


def test_a_killed_command_leaves_its_job_and_the_same_command_attaches(
    on_cluster: Any, cluster: Cluster, recipe: Path, eventually: Any, undisturbed: Callable[..., dict[str, str]]
) -> None:
    first = on_cluster.start("run", str(recipe), *ON, *LONG)
    eventually(lambda: trained(on_cluster) >= 8, 300, "eight steps")
    psutil.Process(first.pid).kill()
    first.communicate()
    (job,) = [job["metadata"]["name"] for job in cluster.all("trainjobs")]
    again = on_cluster("run", str(recipe), *ON, *LONG)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"attached to trainjob/{job} in namespace train of cluster test" in again.stdout
    assert [event["step"] for event in on_cluster.events() if event["event"] == "start"] == [0]
    assert on_cluster.published() == undisturbed(recipe, *LONG)
    assert not cluster.all("trainjobs")


def test_ctrl_c_ends_nothing_and_cancel_lets_the_job_save(
    on_cluster: Any, cluster: Cluster, recipe: Path, eventually: Any
) -> None:
    run = on_cluster.start("run", str(recipe), *ON, "--set", "stages.pretrain.steps=4000")
    eventually(lambda: trained(on_cluster) >= 4, 300, "four steps")
    run.send_signal(signal.SIGINT)
    printed, _ = run.communicate(timeout=60)
    assert run.returncode == 130
    (job,) = [job["metadata"]["name"] for job in cluster.all("trainjobs")]
    assert f"trainjob/{job} in namespace train of cluster test goes on." in " ".join(printed.split())
    reached = trained(on_cluster)
    eventually(lambda: trained(on_cluster) > reached, 120, "more steps")
    done = on_cluster("cancel", on_cluster.json("runs")[0]["id"])
    assert done.returncode == 0, done.stderr
    assert not any(cluster.all(plural) for plural in ("trainjobs", "trainingruntimes", "jobsets", "pods"))
    assert on_cluster.events()[-1]["status"] == "preempted"
