"""What the status of pods means, by statuses as kubelets and controllers write them."""

from typing import Any

import pytest

from cupola_platform.launch.kubernetes import pods


def pod(number: int = 1, **status: Any) -> dict[str, Any]:
    labels = {"batch.kubernetes.io/job-completion-index": str(number)}
    return {"metadata": {"labels": labels}, "spec": {"nodeName": "gpu-7"}, "status": status}


def container(**state: Any) -> list[dict[str, Any]]:
    return [{"name": "node", "image": "cupola:1", "state": state}]


def disruption(reason: str) -> list[dict[str, str]]:
    return [{"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "as it\n says"}]


@pytest.mark.parametrize(
    ("status", "says"),
    [
        ({"containerStatuses": container(terminated={"exitCode": 137, "reason": "OOMKilled"})}, "node 1 (gpu-7) ran out of memory"),
        ({"conditions": disruption("PreemptionByScheduler")}, "node 1 (gpu-7): it was preempted by a job of higher priority"),
        ({"conditions": disruption("DeletionByTaintManager")}, "node 1 (gpu-7): its node was lost or drained"),
        ({"conditions": disruption("SomethingNew")}, "node 1 (gpu-7): SomethingNew: as it says"),
        ({"reason": "Evicted", "message": "The node was low on resource: ephemeral-storage."}, "node 1 (gpu-7): Evicted: The node was low on resource: ephemeral-storage."),
        ({"reason": "NodeLost"}, "node 1 (gpu-7): NodeLost"),
        ({"containerStatuses": container(terminated={"exitCode": 1, "reason": "Error"})}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_why_kubernetes_ended_a_pod(status: dict[str, Any], says: str | None) -> None:
    assert pods.ending([pod(0, phase="Running"), pod(**status)]) == says


@pytest.mark.parametrize(
    ("status", "says"),
    [
        ({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": 'persistentvolumeclaim "w" not found.'}]},
         'Unschedulable: persistentvolumeclaim "w" not found.'),
        ({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}, "SchedulingGated"),
        ({"conditions": [{"type": "PodScheduled", "status": "True"}], "containerStatuses": container(waiting={"reason": "ContainerCreating"})}, "ContainerCreating"),
        ({"conditions": [{"type": "PodScheduled", "status": "True"}]}, "ContainerCreating"),
        ({}, "Pending"),
    ],
)  # fmt: skip
def test_what_a_pod_waits_for(status: dict[str, Any], says: str) -> None:
    waiting = pod(phase="Pending", **status)
    assert pods.waiting_for([pod(0, phase="Running"), waiting]) == says
    assert pods.waiting_for([pod(0, phase="Running"), pod(0, phase="Succeeded")]) is None
    assert pods.hopeless([waiting]) is None


def test_what_a_container_will_not_get_over() -> None:
    waiting = {"reason": "InvalidImageName", "message": 'couldn\'t parse image "a b"'}
    assert pods.hopeless([pod(containerStatuses=container(waiting=waiting))]) == (
        "the container cannot start", 'InvalidImageName: couldn\'t parse image "a b"'
    )  # fmt: skip
