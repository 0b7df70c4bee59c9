"""Pods without a shared folder: each has an empty workspace of its own, and only the store is common to all."""

import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.clusters.kubernetes.standin_cluster import Cluster

from cupola_platform.clusters import KubernetesCluster
from cupola_platform.errors import ConfigError
from cupola_platform.launch.kubernetes.launcher import KubernetesLauncher
from cupola_platform.launch.unshared.launcher import UnsharedLauncher
from cupola_platform.settings import Settings, load_settings

SETTINGS = """
store_url = "{store}"
s3_endpoint_url = "{endpoint}"
[clusters.test]
launcher = "kubernetes"
nodes = 4
ranks_per_node = 1
interface = "lo"
namespace = "train"
image = "cupola:test"
shared = false
secret = "store"
python = "{python}"
environment = {{ PYTHONPATH = "{path}", CUPOLA_HOME = "{home}" }}
"""
STEPS = ("--set", "stages.pretrain.steps=60", "--set", "stages.pretrain.checkpoint.every=5")
ADAPT = """
  adapt:
    kind: pretrain
    parent: pretrain
    tokens: prepare
    lora: {rank: 2, alpha: 4}
    layout: {tp: 2}
    batch: {sequence_length: 64, micro_batch_size: 4, global_batch_size: 4}
    steps: 4
    checkpoint: {every: 4}
"""
ON = ("--run-on", "test", "--no-prefect")


@pytest.fixture
def on_cluster(cupola: Any, cluster: Cluster, kubeconfig: Any, s3: Any, tmp_path: Path) -> Any:
    """The command on a machine whose cupola.toml names the stand-in. Its pods have their workspace at another path, do
    not see this machine's, and get the store's credentials from a secret."""
    settings = SETTINGS.format(
        store=f"s3://{s3.bucket}/{tmp_path.name}", endpoint=s3.endpoint_url, python=sys.executable,
        path=os.environ.get("PYTHONPATH", ""), home=tmp_path / "pod",
    )  # fmt: skip
    cupola.workspace.mkdir(parents=True, exist_ok=True)
    cluster.hidden.append(str(cupola.workspace))
    (cupola.workspace.parent / "cupola.toml").write_text(settings)
    credentials = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    cluster.add("secrets", "store", "train", stringData=credentials)
    return replace(cupola, variables={"KUBECONFIG": os.environ["KUBECONFIG"]})


def whole(s3: Any, tmp_path: Path) -> set[int]:
    """Steps of the checkpoints that are complete in the store."""
    listed = s3.client.list_objects_v2(Bucket=s3.bucket, Prefix=f"{tmp_path.name}/jobs/").get("Contents", [])
    found = [re.search(r"checkpoints/step_(\d+)@\w+/manifest\.json$", item["Key"]) for item in listed]
    return {int(match[1]) for match in found if match}


@pytest.mark.timeout(1500)
@pytest.mark.slow
@pytest.mark.parametrize("loses_a_pod", [False, True])
def test_a_run_equals_one_on_a_single_machine(
    on_cluster: Any, cluster: Cluster, recipe: Path, undisturbed: Callable[..., dict[str, str]], eventually: Any,
    s3: Any, tmp_path: Path, loses_a_pod: bool,
) -> None:  # fmt: skip
    run = on_cluster.start("run", str(recipe), *ON, *STEPS)
    if loses_a_pod:
        eventually(lambda: run.poll() is not None or whole(s3, tmp_path), 400, "a checkpoint")
        (second,) = [pod for pod in cluster.all("pods") if "-0-1-" in pod["metadata"]["name"]]
        cluster.containers[second["metadata"]["uid"]].kill()
    printed, _ = run.communicate(timeout=900)
    assert run.returncode == 0, printed
    (log,) = on_cluster.workspace.glob("logs/pretrain-*.log")
    for node in (0, 1):
        assert re.search(rf"node {node}: cupola: .*: fetched [1-9][0-9,]* bytes of inputs", log.read_text())
        has = r"has [1-9][0-9,]* of the [1-9][0-9,]* bytes of its token shards"
        assert re.search(rf"node {node}: cupola: .*: {has}", log.read_text())
    starts = [event["step"] for event in on_cluster.events() if event["event"] == "start"]
    restarts = [event["attempt"] for event in on_cluster.events() if event["event"] == "restart"]
    if loses_a_pod:
        assert (starts[0], len(starts), restarts) == (0, 2, [1])
        assert starts[1] > 0
    else:
        assert (starts, restarts) == ([0], [])
    assert not s3.client.list_objects_v2(Bucket=s3.bucket, Prefix=f"{tmp_path.name}/jobs/").get("Contents")
    assert not list(on_cluster.workspace.rglob("rank_*.bin")), "the checkpoint was copied within the store"
    published = on_cluster.published()
    (on_cluster.workspace.parent / "cupola.toml").unlink()  # the twin has a store of its own
    assert published == undisturbed(recipe, *STEPS)


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_cancel_lets_the_job_save_and_the_same_command_resumes_on_new_pods(
    on_cluster: Any, cluster: Cluster, recipe: Path, eventually: Any, s3: Any, tmp_path: Path
) -> None:
    changes = ("--set", "stages.pretrain.checkpoint.every=1000", "--set", "stages.pretrain.steps=40")
    run = on_cluster.start("run", str(recipe), *ON, *changes)
    eventually(lambda: any(event["event"] == "step" for event in on_cluster.events()), 400, "a step")
    done = on_cluster("cancel", on_cluster.json("runs")[0]["id"])
    assert done.returncode == 0, done.stderr
    assert run.wait(60) == 130, run.communicate()
    assert not any(cluster.all(plural) for plural in ("trainjobs", "trainingruntimes", "jobsets", "pods"))
    ended = on_cluster.events()[-1]
    assert ended["status"] == "preempted"
    assert whole(s3, tmp_path) == {ended["step"]}
    again = on_cluster("run", str(recipe), *ON, *changes)
    assert again.returncode == 0, again.stdout + again.stderr
    assert [event["step"] for event in on_cluster.events() if event["event"] == "start"] == [0, ended["step"]]


@pytest.mark.timeout(1500)
@pytest.mark.slow
def test_adapters_are_folded_from_what_the_store_has(
    on_cluster: Any, recipe: Path, undisturbed: Callable[..., dict[str, str]]
) -> None:
    """The stage's second job reads the checkpoint of its first one, which this machine has only in part."""
    few = ("--set", "stages.pretrain.steps=4", "--set", "stages.pretrain.checkpoint.every=4")
    recipe.write_text(recipe.read_text() + ADAPT)
    done = on_cluster("run", str(recipe), *ON, *few, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(on_cluster.workspace.rglob("rank_*.bin"))
    published = on_cluster.published()
    assert {"pretrain", "adapt", "adapt-adapter", "adapt-optimizer"} <= published.keys()
    (on_cluster.workspace.parent / "cupola.toml").unlink()
    assert published == undisturbed(recipe, *few)


def test_a_manifest_has_a_workspace_of_each_pod_and_no_secret(
    launcher: Callable[..., KubernetesLauncher], cluster: Cluster, s3: Any, tmp_path: Path
) -> None:
    cluster.images.clear()
    cluster.add("secrets", "store", "train", stringData={})
    inner = launcher(shared=False, volume=None, secret="store", environment={})
    settings = Settings(home=tmp_path, store_url=f"s3://{s3.bucket}/{tmp_path.name}", s3_endpoint_url=s3.endpoint_url)
    folder = tmp_path / "work" / "f" / "job"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"output": str(folder)}))
    running = UnsharedLauncher(inner, "test", inner.cluster, settings).start(
        folder / "job.json", processes=2, log=tmp_path / "log"
    )
    (runtime,) = cluster.all("trainingruntimes")
    running.inner.stop(0)
    pod = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["volumes"] == [{"name": "shm", "emptyDir": {"medium": "Memory"}}, {"name": "workspace", "emptyDir": {}}]
    assert container["volumeMounts"][1] == {"name": "workspace", "mountPath": "/workspace"}
    assert {each["name"]: each["value"] for each in container["env"] if each["name"].startswith(("CUPOLA_", "AWS_")) and "value" in each} == {
        "CUPOLA_HOME": "/workspace", "CUPOLA_STORE_URL": settings.store_url, "CUPOLA_S3_ENDPOINT_URL": s3.endpoint_url,
        "CUPOLA_JOB_SECTION": "jobs/work/f/job", "CUPOLA_JOB_FOLDER": "work/f/job", "CUPOLA_JOB_CACHE": "200",
    }  # fmt: skip
    assert container["envFrom"] == [{"secretRef": {"name": "store"}}]
    assert "/workspace/work/f/job" in container["command"]
    assert container["command"][-1] == "/workspace/work/f/job/job.json"
    sent = json.dumps(runtime) + (folder / "kubernetes.json").read_text()
    assert str(tmp_path) not in sent.replace(settings.store_url or "", "").replace(str(tmp_path / "log"), "")
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in sent
    assert os.environ["AWS_ACCESS_KEY_ID"] not in sent


def test_a_volume_without_a_shared_folder_and_a_relative_workspace_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = 'launcher = "kubernetes"\nimage = "cupola"\nranks_per_node = 1\nshared = false\n'
    for more, says in (
        ('volume = "workspace"', "has shared = false and volume = 'workspace'. Leave one of them out"),
        (
            'environment = {CUPOLA_HOME = "here"}',
            "has CUPOLA_HOME = 'here', the workspace on the nodes. Give an absolute",
        ),
    ):
        (tmp_path / "cupola.toml").write_text(f"[clusters.k8s]\n{plain}{more}\n")
        with pytest.raises(ConfigError) as caught:
            load_settings(tmp_path)
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)
    assert (
        KubernetesCluster.model_validate(
            {"launcher": "kubernetes", "image": "c", "ranks_per_node": 1, "shared": False}
        ).home_on_nodes
        == "/workspace"
    )
