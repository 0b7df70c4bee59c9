"""Jobs through the real client and real torchrun agents, on a stand-in for the cluster: see `standin_cluster`."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.clusters.kubernetes.standin_api import Server, StatusError
from tests.clusters.kubernetes.standin_cluster import Cluster

from cupola_platform.launch import handle
from cupola_platform.launch.kubernetes import api, job, logs
from cupola_platform.launch.kubernetes.launcher import KubernetesLauncher

Launch = Callable[..., KubernetesLauncher]
Write = Callable[..., Path]
Wait = Callable[..., None]


def is_empty(cluster: Cluster) -> bool:
    return not any(cluster.all(plural) for plural in ("trainjobs", "trainingruntimes", "jobsets", "pods"))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["trainjob", "jobset"])
def test_the_ranks_of_a_job_run_one_on_each_node(
    launcher: Launch, job_file: Write, cluster: Cluster, wait_for: Wait, tmp_path: Path, engine: str
) -> None:
    if engine == "jobset":
        del cluster.apis["trainer.kubeflow.org/v1alpha1"]
    file = job_file("a job with spaces, $(PATH) and $(touch x)", lines=3)
    running = launcher().start(file, processes=2, log=tmp_path / "pre train-0123456789ab.log")
    assert re.fullmatch(rf"train/{engine}/cupola-pre-train-0123456789ab-[0-9a-f]{{8}}", running.known.id)
    assert running.wait(120) == 0, (tmp_path / "pre train-0123456789ab.log").read_text()
    assert {(file.parent / f"rank-{rank}").read_text() for rank in (0, 1)} == {"2 0 0\n", "2 1 0\n"}
    printed = (tmp_path / "pre train-0123456789ab.log").read_text().splitlines()
    of_node_0 = [line for line in printed if "line" in line and "node 0" in line]
    rank = of_node_0[0].split()[3]  # torchrun numbers the nodes as they come
    assert of_node_0 == [f"node 0: rank {rank} line {i}" for i in range(3)]
    assert running.reason() is None
    wait_for(lambda: is_empty(cluster), 30)
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_a_failed_rank_fails_the_job(
    launcher: Launch, job_file: Write, cluster: Cluster, wait_for: Wait, tmp_path: Path
) -> None:
    running = launcher().start(job_file(status=3), processes=2, log=tmp_path / "log")
    assert running.wait(120) == 1
    assert running.reason() is None
    wait_for(lambda: is_empty(cluster), 30)


@pytest.mark.slow
def test_a_failed_rank_starts_the_job_again_as_often_as_allowed(
    launcher: Launch, job_file: Write, tmp_path: Path
) -> None:
    file = job_file()
    (file.parent / "fail").touch()
    (file.parent / "hang.json").write_text(json.dumps({"reason": "rank 1 hung"}))
    running = launcher().start(file, processes=2, log=tmp_path / "log", restarts=1)
    assert running.wait(240) == 0, (tmp_path / "log").read_text()
    starts = (file.parent / "rank-0").read_text().splitlines()
    assert [(line.split()[0], line.split()[2]) for line in starts] == [("2", "0"), ("2", "1")]
    assert "cupola: start 2: a rank failed" in (tmp_path / "log").read_text()
    event = json.loads((file.parent / "metrics.jsonl").read_text())
    assert (event["event"], event["attempt"], event["of"], event["reason"]) == ("restart", 1, 1, "rank 1 hung")
    assert not (file.parent / "hang.json").exists()


@pytest.mark.slow
def test_an_error_that_the_job_reports_is_not_tried_again(launcher: Launch, job_file: Write, tmp_path: Path) -> None:
    file = job_file(error=True, status=2)
    assert launcher().start(file, processes=1, log=tmp_path / "log", restarts=3).wait(240) == 1
    assert (file.parent / "rank-0").read_text() == "1 0 0\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("blow", "says"), [("lose", "its node was lost or drained"), ("preempt", "preempted by a job of higher priority")]
)
def test_a_lost_node_and_a_preemption_do_not_count_as_failures(
    launcher: Launch, job_file: Write, cluster: Cluster, wait_for: Wait, tmp_path: Path, blow: str, says: str
) -> None:
    file = job_file(seconds=6)
    running = launcher().start(file, processes=2, log=tmp_path / "log", restarts=0)
    wait_for(lambda: running.poll() or len(list(file.parent.glob("rank-*"))) == 2)
    pod = next(pod for pod in cluster.all("pods") if "-0-1-" in pod["metadata"]["name"])
    if blow == "lose":
        cluster.lose_node(pod["spec"]["nodeName"])
    else:
        cluster.preempt(pod)
        wait_for(lambda: running.poll() is None and list(file.parent.glob("saved-*")))
    assert running.wait(240) == 0, (tmp_path / "log").read_text()
    assert says in (tmp_path / "log").read_text()
    starts = [line for rank in (0, 1) for line in (file.parent / f"rank-{rank}").read_text().splitlines()]
    assert sorted(starts) == ["2 0 0", "2 0 1", "2 1 0", "2 1 1"], "torchrun numbers nodes as they come"


@pytest.mark.slow
def test_a_job_that_lost_nodes_makes_do_with_those_that_are_left(
    launcher: Launch, job_file: Write, cluster: Cluster, wait_for: Wait, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "SHORT_AFTER", 1.0)
    wide, narrow = job_file("wide", seconds=300), job_file("narrow")
    running = launcher().start(wide, processes=2, log=tmp_path / "log", fallbacks=[(narrow, 1)])
    wait_for(lambda: running.poll() or len(list(wide.parent.glob("rank-*"))) == 2)
    for number in (1, 2, 3):
        cluster.lose_node(f"n{number}")
    assert running.wait(240) == 0, (tmp_path / "log").read_text()
    assert (narrow.parent / "rank-0").read_text() == "1 0 0\n"
    assert "cupola: too few nodes are left (Unschedulable: 0/4 nodes" in (tmp_path / "log").read_text()
    assert handle.read(wide.parent) == running.known


@pytest.mark.slow
def test_a_node_out_of_memory_is_named(
    launcher: Launch, job_file: Write, cluster: Cluster, wait_for: Wait, tmp_path: Path
) -> None:
    file = job_file(seconds=300)
    running = launcher().start(file, processes=1, log=tmp_path / "log")
    wait_for(lambda: running.poll() or (file.parent / "rank-0").exists())
    cluster.run_out_of_memory(cluster.all("pods")[0])
    assert running.wait(60) == 1
    assert running.reason() == "node 0 (n1) ran out of memory"


@pytest.mark.slow
def test_stopping_lets_the_ranks_save_and_leaves_nothing(
    launcher: Launch, job_file: Write, cluster: Cluster, wait_for: Wait, tmp_path: Path
) -> None:
    file = job_file(seconds=300)
    running = launcher().start(file, processes=2, log=tmp_path / "log", restarts=5)
    wait_for(lambda: running.poll() or len(list(file.parent.glob("rank-*"))) == 2)
    assert running.stop(60) == 143
    assert {path.name for path in file.parent.glob("saved-*")} == {"saved-0", "saved-1"}
    assert (tmp_path / "log").read_text().count("saving") == 2
    assert is_empty(cluster)


@pytest.mark.slow
def test_ranks_may_take_longer_to_save_than_torchrun_waits(
    launcher: Launch, job_file: Write, wait_for: Wait, tmp_path: Path
) -> None:
    file = job_file(seconds=300, saving=35)
    running = launcher().start(file, processes=1, log=tmp_path / "log")
    wait_for(lambda: running.poll() or (file.parent / "rank-0").exists())
    assert running.stop(100) == 143
    assert (file.parent / "saved-0").exists()


@pytest.mark.slow
def test_another_process_attaches_and_loses_no_line(launcher: Launch, job_file: Write, tmp_path: Path) -> None:
    file = job_file(lines=40, pause=0.25)
    program = f"""
import time
from pathlib import Path
from cupola_platform.clusters import KubernetesCluster
from cupola_platform.launch.kubernetes.launcher import KubernetesLauncher
cluster = KubernetesCluster.model_validate_json({launcher().cluster.model_dump_json()!r})
KubernetesLauncher("test", cluster, Path({str(tmp_path)!r}), module="rank_of_test").start(
    Path({str(file)!r}), processes=2, log=Path({str(tmp_path / "log")!r})).wait()
"""
    first = subprocess.Popen([sys.executable, "-c", program], env=dict(os.environ))
    log = tmp_path / "log"
    while "line 5" not in (log.read_text() if log.exists() else ""):
        assert first.poll() is None
    first.kill()
    first.wait()
    again = launcher().attach(file)
    assert again is not None
    assert handle.read(file.parent) == again.known
    assert again.wait(120) == 0
    printed = log.read_text().splitlines()
    for rank in (0, 1):
        mine = [line for line in printed if line.startswith(f"node {rank}: rank {rank} line")]
        assert mine == [f"node {rank}: rank {rank} line {i}" for i in range(40)]
    assert launcher().attach(file) is None


@pytest.mark.slow
def test_a_watcher_that_drops_the_job_leaves_its_output_to_the_next(
    launcher: Launch, job_file: Write, wait_for: Wait, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "UNWATCHED", 1.0)
    file, log = job_file(lines=60, pause=0.2), tmp_path / "log"
    dropped = launcher().start(file, processes=1, log=log)
    wait_for(lambda: dropped.poll() or "line 5" in log.read_text())
    time.sleep(3)
    again = launcher().attach(file)
    assert again is not None
    assert again.wait(120) == 0
    printed = [line.partition(": ")[2] for line in log.read_text().splitlines() if "rank 0 line" in line]
    assert printed == [f"rank 0 line {i}" for i in range(60)]


@pytest.mark.slow
def test_a_server_that_stumbles_ends_nothing(
    launcher: Launch, job_file: Write, server: Server, kubeconfig: Callable[..., None], wait_for: Wait, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(api, "PATIENCE", 30.0)
    server.lines_per_stream = 8
    server.lost_answers = 1
    server.faults = [
        StatusError(429, "too many requests", Retry_After="0"),
        StatusError(410, "too old"),
        StatusError(503, "no leader"),
    ]
    file = job_file(lines=20, pause=0.2, seconds=10)
    running = launcher().start(file, processes=2, log=tmp_path / "log")
    wait_for(lambda: running.poll() or "line 2" in (tmp_path / "log").read_text())
    server.stop()
    assert running.wait(2) is None
    assert "does not answer" in str(running.waits())
    kubeconfig(token="second")
    server.tokens = {"second"}
    server.start()
    assert running.wait(120) == 0
    printed = (tmp_path / "log").read_text().splitlines()
    lines = [line.partition(": ")[2] for line in printed if "rank 1 line" in line]
    assert lines == [f"rank 1 line {i}" for i in range(20)]


def test_a_job_that_someone_deletes_was_cancelled(
    launcher: Launch, job_file: Write, cluster: Cluster, tmp_path: Path
) -> None:
    cluster.images.clear()
    file = job_file()
    running = launcher().start(file, processes=1, log=tmp_path / "log")
    assert running.wait(0.5) is None
    cluster.all("trainjobs")[0]["metadata"]["deletionTimestamp"] = "now"
    assert running.wait(30) == 1
    assert running.reason() == handle.CANCELLED
    assert launcher().attach(file) is None


def test_a_job_says_what_it_waits_for(
    launcher: Launch, job_file: Write, cluster: Cluster, wait_for: Wait, tmp_path: Path
) -> None:
    cluster.apis["kueue.x-k8s.io/v1beta1"] = ["workloads", "localqueues"]
    cluster.add("localqueues", "team", "train")
    cluster.admits = False
    cluster.images.clear()
    with launcher(queue="team").start(job_file(), processes=1, log=tmp_path / "log") as running:
        wait_for(lambda: running.poll() or "Kueue: couldn't assign flavors" in str(running.waits()))
        assert launcher(queue="team").capacity().waiting == 1
        for number in range(1, 5):
            cluster.lose_node(f"n{number}")
        cluster.admits = True
        wait_for(lambda: running.poll() or "Unschedulable: 0/4 nodes are available" in str(running.waits()))
        assert launcher().capacity().down["n1"] == "not ready: Kubelet stopped posting node status."
        cluster.add_node("n5")
        wait_for(
            lambda: running.poll() or 'ImagePullBackOff: Back-off pulling image "cupola:test"' in str(running.waits())
        )
    assert is_empty(cluster)


@pytest.mark.slow
def test_fewer_nodes_take_the_layout_that_fits(
    launcher: Launch, job_file: Write, cluster: Cluster, tmp_path: Path
) -> None:
    for number in (1, 2, 3):
        cluster.lose_node(f"n{number}")
    wide, narrow = job_file("wide"), job_file("narrow")
    running: Any = launcher().start(wide, processes=2, log=tmp_path / "log", fallbacks=[(narrow, 1)])
    assert running.wait(120) == 0, (tmp_path / "log").read_text()
    assert (narrow.parent / "rank-0").read_text() == "1 0 0\n"
    assert handle.read(wide.parent) == running.known
