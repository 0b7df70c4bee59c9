"""What is sent to a cluster fits the published schemas: Kubernetes' own of two versions, and TrainJob's and JobSet's as
Kubeflow Trainer publishes them (kubeflow-trainer-api, Apache-2.0)."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from kubeflow_trainer_api.models import (
    jobset_v1alpha2_job_set,
    trainer_v1alpha1_train_job,
    trainer_v1alpha1_training_runtime,
)

from cupola_platform.clusters import KubernetesCluster
from cupola_platform.launch.kubernetes import manifests
from cupola_platform.launch.kubernetes.manifests import Order

FULL = KubernetesCluster(
    launcher="kubernetes", nodes=8, gpus_per_node=8, image="registry.example.org/cupola@sha256:0123", namespace="train",
    queue="team-a", volume="workspace", service_account="trainer", node_selector={"gpu.example.org/model": "H100"},
    secret="store", cpus=96, memory=1500, user=10001, setup=("module load cuda",), environment={"A": "$(HOME) and $(B)"},
    interface="eth1", resources={"rdma/hca": "1"},
)  # fmt: skip
PLAIN = KubernetesCluster(launcher="kubernetes", ranks_per_node=2, image="cupola", volume="workspace")
APART = FULL.but(shared=False, volume=None, environment={"CUPOLA_HOME": "/local"})
HOSTILE = 'x\'; $(touch y) {{a}}\n- b: "c" ${IFS} ../../Ünïcode-' + "z" * 300


def order(stage: str = "pretrain-0123456789ab", **changes: Any) -> Order:
    given: dict[str, Any] = {
        "name": manifests.new_name(stage), "stage": stage, "job_file": Path("/ws/work/f/job.json"),
        "folder": Path("/ws/work/f"), "nodes": 4, "ranks": 8, "module": "cupola_trainer", "environment": {"C": "d"},
        "restarts": 3, "workspace": Path("/ws"), **changes,
    }  # fmt: skip
    return Order(**given)


def unknown_fields(model: Any, manifest: dict[str, Any]) -> Any:
    """What a schema's classes do not take over from a manifest: fields that they do not know."""
    return _missing(manifest, model.from_dict(manifest).to_dict())


def _missing(given: Any, taken: Any) -> Any:
    if isinstance(given, dict):
        lost = {key: _missing(value, taken.get(key)) if key in taken else value for key, value in given.items()}
        return {key: value for key, value in lost.items() if value}
    if isinstance(given, list):
        return [lost for pair in zip(given, taken, strict=True) if (lost := _missing(*pair))]
    return None if given == taken else given


@pytest.mark.parametrize("cluster", [FULL, PLAIN, APART], ids=["full", "plain", "apart"])
@pytest.mark.parametrize("stage", ["pretrain-0123456789ab", HOSTILE, "---", ""])
def test_trainer_and_jobset_know_every_field(cluster: KubernetesCluster, stage: str) -> None:
    sent = order(stage)
    for model, manifest in (
        (jobset_v1alpha2_job_set.JobsetV1alpha2JobSet, manifests.job_set(sent, cluster)),
        (trainer_v1alpha1_train_job.TrainerV1alpha1TrainJob, manifests.train_job(sent, cluster)),
        (trainer_v1alpha1_training_runtime.TrainerV1alpha1TrainingRuntime, manifests.training_runtime(sent, cluster)),
    ):
        assert unknown_fields(model, manifest) == {}


def test_the_check_of_fields_finds_a_misspelt_one() -> None:
    manifest = manifests.job_set(order(), FULL)
    manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["runtimeClass"] = "nvidia"
    lost = unknown_fields(jobset_v1alpha2_job_set.JobsetV1alpha2JobSet, manifest)
    assert lost == {
        "spec": {"replicatedJobs": [{"template": {"spec": {"template": {"spec": {"runtimeClass": "nvidia"}}}}}]}
    }


@pytest.mark.parametrize("version", ["1.31", "1.37"])
@pytest.mark.parametrize("cluster", [FULL, PLAIN, APART], ids=["full", "plain", "apart"])
def test_the_job_inside_fits_the_schemas_of_kubernetes(cluster: KubernetesCluster, version: str) -> None:
    job = manifests.job_set(order(HOSTILE), cluster)["spec"]["replicatedJobs"][0]["template"]
    whole = {"apiVersion": "batch/v1", "kind": "Job", **job, "metadata": {**job["metadata"], "name": "job"}}
    kubernetes_validate.validate(whole, version, strict=True)
    del whole["spec"]["template"]["spec"]["containers"][0]["name"]
    with pytest.raises(kubernetes_validate.ValidationError, match="'name' is a required property"):
        kubernetes_validate.validate(whole, version, strict=True)


def test_names_are_valid_unique_and_traceable() -> None:
    names = [manifests.new_name(stage) for stage in (HOSTILE, "---", "", "sft-0123456789ab", "sft-0123456789ab")]
    assert len(set(names)) == 5
    assert names[3].startswith("cupola-sft-0123456789ab-")
    for name in names:
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": []}}, "1.37"
        )
        assert len(f"{name}-node-0-1000-abcde") <= 63, name
        assert name.isascii()
        assert name.replace("-", "").isalnum()
        assert name == name.lower()


def test_a_hostile_stage_leaves_no_trace_in_its_labels() -> None:
    labels = manifests.job_set(order(HOSTILE), FULL)["metadata"]["labels"]
    assert labels["cupola/stage"] == "x-touch-y-a---b-c-IFS-..-..-n-code-zzzzzzzzzzzzzzzzzzzzzzzzzzzz"
    assert "cupola/stage" not in manifests.job_set(order("---"), FULL)["metadata"]["labels"]


def test_pods_have_no_more_rights_than_they_need() -> None:
    pod = manifests.job_set(order(), FULL)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert pod["securityContext"] == {
        "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, "runAsUser": 10001, "runAsGroup": 10001,
        "fsGroup": 10001, "fsGroupChangePolicy": "OnRootMismatch",
    }  # fmt: skip
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert pod["automountServiceAccountToken"] is False
    assert container["envFrom"] == [{"secretRef": {"name": "store"}}]
    assert container["resources"]["limits"] == {"rdma/hca": "1", "nvidia.com/gpu": "8", "memory": "1536000Mi"}
    assert {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]} == {
        "shm": "/dev/shm",
        "workspace": "/ws",
    }


def test_nothing_of_ours_is_replaced_by_kubernetes() -> None:
    sent = order(job_file=Path("/ws/$(HOSTNAME)/job.json"))
    container = manifests.job_set(sent, FULL)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"][
        "containers"
    ][0]
    assert container["command"][-1] == "/ws/$$(HOSTNAME)/job.json"
    assert {"name": "A", "value": "$$(HOME) and $$(B)"} in container["env"]
    assert container["command"][:2] == ["bash", "-c"]
    assert container["command"][2] == 'set -e\nmodule load cuda\nexec "$@"'


def test_disruptions_restart_the_set_without_counting() -> None:
    spec = manifests.job_set(order(), FULL)["spec"]
    assert spec["failurePolicy"]["maxRestarts"] == 3
    assert spec["failurePolicy"]["rules"][0]["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    job = spec["replicatedJobs"][0]["template"]["spec"]
    assert job["podFailurePolicy"]["rules"] == [
        {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    ]
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] == 120
    assert manifests.train_job(order(), FULL)["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
