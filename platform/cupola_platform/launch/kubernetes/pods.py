"""What the pods of a job say about it: what they wait for, what they will never get over, and why they ended."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cupola_platform.launch.kubernetes.manifests import RESTARTED

Object = Mapping[str, Any]

INDEX = "batch.kubernetes.io/job-completion-index"
PULLING = {"ErrImagePull", "ImagePullBackOff", "RegistryUnavailable"}
HOPELESS = {"InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError", "CreateContainerError",
            "RunContainerError"}  # fmt: skip
DISRUPTIONS = {
    "PreemptionByScheduler": "it was preempted by a job of higher priority",
    "DeletionByTaintManager": "its node was lost or drained",
    "DeletionByPodGC": "its node is gone",
    "EvictionByEvictionAPI": "it was evicted, as when a node is drained",
    "TerminationByKubelet": "its node shut down or ran out of memory or disk",
}


def node_of(pod: Object) -> int:
    """The pod's number among the job's nodes, from 0."""
    metadata = pod["metadata"]
    named = {**metadata.get("annotations", {}), **metadata.get("labels", {})}
    return int(named.get(INDEX, 0))


def attempt_of(pod: Object) -> int:
    """How often the job had started again when the pod was made."""
    metadata = pod["metadata"]
    return int({**metadata.get("labels", {}), **metadata.get("annotations", {})}.get(RESTARTED, 0))


def has_started(pod: Object) -> bool:
    """Whether its container ran, so that there may be output."""
    return any({"running", "terminated"} & set(status.get("state", {})) for status in _containers(pod))


def has_ended(pod: Object) -> bool:
    """Whether its container will print nothing more."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def waiting_for(pods: Sequence[Object]) -> str | None:
    """Why a pod has not started, in the engine's words; None if all have."""
    for pod in pods:
        status = pod.get("status", {})
        if status.get("phase") != "Pending":
            continue
        scheduled = condition(pod, "PodScheduled")
        if scheduled.get("status") == "False":
            return _line(scheduled.get("reason"), scheduled.get("message"))
        for container in _containers(pod):
            waiting = container.get("state", {}).get("waiting")
            if waiting:
                return _line(waiting.get("reason"), waiting.get("message"))
        if scheduled.get("status") == "True":
            return "ContainerCreating"
        return "Pending"
    return None


def hopeless(pods: Sequence[Object]) -> tuple[str, str] | None:
    """(what is wrong, the kubelet's words) if a container cannot be made; it may still be a passing fault."""
    for pod in pods:
        for container in _containers(pod):
            waiting = container.get("state", {}).get("waiting", {})
            reason, message = waiting.get("reason", ""), _line(waiting.get("reason"), waiting.get("message"))
            if reason in PULLING:
                return f"the image {container.get('image') or ''} cannot be pulled".replace("  ", " "), message
            if reason in HOPELESS:
                return "the container cannot start", message
    return None


def ending(pods: Sequence[Object]) -> str | None:
    """Why Kubernetes ended a pod, in words; None if none was ended by it."""
    for pod in pods:
        where = f"node {node_of(pod)} ({pod.get('spec', {}).get('nodeName', 'no machine')})"
        if any(state.get("reason") == "OOMKilled" for state in _terminated(pod)):
            return f"{where} ran out of memory"
        target = condition(pod, "DisruptionTarget")
        if target.get("status") == "True":
            words = DISRUPTIONS.get(target.get("reason", ""))
            return f"{where}: {words or _line(target.get('reason'), target.get('message'))}"
        status = pod.get("status", {})
        if status.get("reason"):  # Evicted, NodeLost, DeadlineExceeded, UnexpectedAdmissionError, Shutdown
            return f"{where}: {_line(status['reason'], status.get('message'))}"
    return None


def condition(thing: Object, kind: str) -> Object:
    """A condition of an object's status; empty if it has none of that type."""
    conditions: Sequence[Object] = thing.get("status", {}).get("conditions") or []
    return next((each for each in conditions if each["type"] == kind), {})


def _containers(pod: Object) -> Sequence[Object]:
    statuses: Sequence[Object] = pod.get("status", {}).get("containerStatuses") or []
    return statuses


def _terminated(pod: Object) -> Iterator[Object]:
    for container in _containers(pod):
        if "terminated" in container.get("state", {}):
            yield container["state"]["terminated"]


def _line(reason: str | None, message: str | None) -> str:
    return ": ".join(" ".join(part.split()) for part in (reason, message) if part)
