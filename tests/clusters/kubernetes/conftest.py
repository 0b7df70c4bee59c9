"""A launcher for a stand-in cluster of four nodes, a kubeconfig for it, and ranks that do little."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.clusters.kubernetes.standin_api import Server
from tests.clusters.kubernetes.standin_cluster import Cluster

from cupola_platform.clusters import KubernetesCluster
from cupola_platform.launch.kubernetes import api, job, logs
from cupola_platform.launch.kubernetes.launcher import KubernetesLauncher

NODES = 4
RANK = """
import json, os, signal, sys, time
from pathlib import Path
job = json.loads(Path(sys.argv[1]).read_text())
folder, rank = Path(job["output"]), os.environ["RANK"]
signal.signal(signal.SIGTERM, lambda *_: time.sleep(job.get("saving", 0)) or (folder / f"saved-{rank}").touch() or print("saving", flush=True) or sys.exit(143))
with (folder / f"rank-{rank}").open("a") as file:
    file.write(f"{os.environ['WORLD_SIZE']} {os.environ['JOB_COMPLETION_INDEX']} {os.environ['CUPOLA_ATTEMPT']}\\n")
until = time.monotonic() + job["seconds"]
for number in range(job.get("lines", 0)):
    print(f"rank {rank} line {number}", flush=True)
    time.sleep(job.get("pause", 0))
while time.monotonic() < until:
    time.sleep(0.1)
if (folder / "fail").exists() and os.environ["CUPOLA_ATTEMPT"] == "0":
    sys.exit("a rank that fails")
if job.get("error"):
    (folder / "error.json").write_text("{}")
sys.exit(job.get("status", 0))
"""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """The stand-in, with the namespace `train`, the claim `workspace` and four nodes."""
    standin = Cluster()
    standin.add("namespaces", "train")
    standin.add("persistentvolumeclaims", "workspace", "train", spec={"accessModes": ["ReadWriteMany"]})
    for number in range(1, NODES + 1):
        standin.add_node(f"n{number}")
    yield standin
    standin.close()


@pytest.fixture
def server(cluster: Cluster, free_ports: Callable[[int], list[int]]) -> Iterator[Server]:
    running = Server(cluster, free_ports(1)[0])
    yield running
    running.stop()


@pytest.fixture
def kubeconfig(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Writes the kubeconfig of this test; the first one is written already."""
    path = tmp_path / "kubeconfig"

    def write(token: str = "first", url: str = server.url) -> None:
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "jo"}}],
            "clusters": [{"name": "test", "cluster": {"server": url}}],
            "users": [{"name": "jo", "user": {"token": token}}],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(config))

    write()
    monkeypatch.setenv("KUBECONFIG", str(path))
    return write


@pytest.fixture
def launcher(
    tmp_path: Path, kubeconfig: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., KubernetesLauncher]:
    """Makes launchers of the stand-in cluster, with settings of one's own."""
    monkeypatch.setattr(job, "POLL_EVERY", 0.2)
    monkeypatch.setattr(logs, "AGAIN", 0.1)
    monkeypatch.setattr(api, "PATIENCE", 1.0)
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "rank_of_test.py").write_text(RANK)
    settings = {
        "launcher": "kubernetes", "nodes": NODES, "ranks_per_node": 1, "interface": "lo", "namespace": "train",
        "image": "cupola:test", "volume": "workspace", "python": sys.executable,
        "environment": {"PYTHONPATH": f"{tmp_path / 'modules'}:{os.environ.get('PYTHONPATH', '')}"},
    }  # fmt: skip
    return lambda **changes: KubernetesLauncher(
        "test", KubernetesCluster(**{**settings, **changes}), tmp_path, module="rank_of_test"
    )


@pytest.fixture
def job_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a job for the ranks of the test."""

    def write(name: str = "job", **settings: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "job.json").write_text(json.dumps({"output": str(folder), "seconds": 0.2, **settings}))
        return folder / "job.json"

    return write


@pytest.fixture
def wait_for() -> Callable[..., None]:
    def wait(true: Callable[[], Any], seconds: float = 120) -> None:
        until = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < until
            time.sleep(0.1)

    return wait
