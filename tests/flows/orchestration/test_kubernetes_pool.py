"""Recipes in pods: the work pool's template, as prefect-kubernetes turns it into a Kubernetes job. No cluster is asked."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import kubernetes_validate
import pytest
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration  # type: ignore[import-untyped]

from cupola_flows.orchestration.deployments import deploy
from cupola_flows.orchestration.kubernetes_pool import INSISTED_ON, job_template
from cupola_platform.clusters import KubernetesCluster, LocalCluster
from cupola_platform.errors import ConfigError
from cupola_platform.settings import Settings

NO_SERVER = SimpleNamespace()
"""In place of Prefect's client, which would read the blocks that a template refers to; this one refers to none."""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    cluster = KubernetesCluster(
        launcher="kubernetes", image="registry.example.org/cupola:1", nodes=2, gpus_per_node=8, namespace="training",
        volume="workspace", secret="cupola", service_account="trainer", environment={"NCCL_DEBUG": "WARN"},
    )  # fmt: skip
    here = LocalCluster(launcher="local", ranks_per_node=2)
    return Settings(home=tmp_path / "home", store_url="s3://bucket/x", clusters={"k": cluster, "here": here})


def manifest(settings: Settings, **job_variables: Any) -> dict[str, Any]:
    """The job that the worker would send to the cluster for a run with these job variables."""

    async def make() -> Any:
        made = KubernetesWorkerJobConfiguration.from_template_and_values(
            job_template(settings, "k"), job_variables, client=NO_SERVER
        )
        return await made if asyncio.iscoroutine(made) else made

    with ThreadPoolExecutor(1) as thread:  # an event loop of another test may run in this one
        configuration = thread.submit(asyncio.run, make()).result()
    run = SimpleNamespace(id=uuid4(), name="smoke", deployment_id=None, flow_id=uuid4(), tags=[], work_queue_name="q")
    configuration.prepare_for_flow_run(run)
    return dict(configuration.job_manifest)


def test_a_run_becomes_a_valid_job_with_the_clusters_image_workspace_and_secret(settings: Settings) -> None:
    made = manifest(settings)
    pod = made["spec"]["template"]["spec"]
    for field in INSISTED_ON:
        del pod[field]
    kubernetes_validate.validate(made, "1.31", strict=True)
    (container,) = pod["containers"]
    assert made["metadata"]["namespace"] == "training"
    assert container["image"] == "registry.example.org/cupola:1"
    assert container["args"] == ["prefect", "flow-run", "execute"]
    assert container["envFrom"] == [{"secretRef": {"name": "cupola"}}]
    assert container["volumeMounts"] == [{"name": "workspace", "mountPath": str(settings.home)}]
    assert pod["serviceAccountName"] == "trainer"
    variables = {each["name"]: each["value"] for each in container["env"]}
    assert variables["CUPOLA_STORE_URL"] == "s3://bucket/x"
    assert variables["NCCL_DEBUG"] == "WARN"
    assert '"gpus_per_node": 8' in variables["CUPOLA_CLUSTERS"]


def test_a_deployment_or_a_run_changes_nothing_of_the_pod(settings: Settings) -> None:
    def without_ids(made: dict[str, Any]) -> tuple[Any, ...]:
        pod = made["spec"]["template"]["spec"]
        return made["metadata"]["namespace"], pod["containers"][0]["image"], pod["containers"][0]["args"], pod.keys()

    evil = manifest(settings, image="evil", command="sh -c id", namespace="kube-system", service_account_name="admin")
    assert without_ids(evil) == without_ids(manifest(settings))


@pytest.mark.parametrize(
    ("recipe", "on", "says"),
    [
        ("smoke", "here", r"--on here: not a Kubernetes cluster of cupola\.toml \(there: k\)"),
        ("smoke", "nowhere", r"--on nowhere: not a Kubernetes cluster"),
        ("own.yaml", "k", r"--on k: its pods do not see .*own\.yaml\. Put the recipe into"),
    ],
)
def test_what_cannot_be_deployed_in_pods_is_one_line(
    settings: Settings, tmp_path: Path, recipe: str, on: str, says: str
) -> None:
    (tmp_path / "own.yaml").write_text("name: own\nstages: {conversations: {tasks: [{name: gcd, count: 4}]}}\n")
    with pytest.raises(ConfigError, match=says) as caught:
        deploy(str(tmp_path / recipe) if recipe.endswith(".yaml") else recipe, settings, on)
    assert "\n" not in str(caught.value)
