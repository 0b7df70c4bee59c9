"""What a Kubernetes cluster has: the engine that runs jobs, what a job needs there, its nodes, its queue."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from cupola_platform.clusters import KubernetesCluster
from cupola_platform.errors import ConfigError, CupolaError
from cupola_platform.launch.capacity import Capacity
from cupola_platform.launch.kubernetes.api import Api, ForbiddenError, MissingError
from cupola_platform.launch.kubernetes.manifests import GPU, JOB_LABEL, PLURALS
from cupola_platform.launch.kubernetes.pods import condition, waiting_for

KUEUE = "/apis/kueue.x-k8s.io"


def engine_of(api: Api) -> str:
    """`trainjob` where Kubeflow Trainer is installed, else `jobset`. Raises ConfigError if neither is."""
    for engine in ("trainjob", "jobset"):
        version, plural = PLURALS[engine]
        with suppress(MissingError):
            offered = api.request("GET", f"/apis/{version}").get("resources", [])
            if plural in {each["name"] for each in offered}:
                return engine
    raise ConfigError(
        f"Cluster {api.cluster} has neither Kubeflow Trainer ({PLURALS['trainjob'][0]}) nor JobSet "
        f"({PLURALS['jobset'][0]}). Install one of them: docs/clusters.md."
    )


def check_needs(api: Api, cluster: KubernetesCluster) -> None:
    """Refuse to start where something that every job needs is missing. What this user may not see is not checked.

    Raises:
        ConfigError: names what is missing and the setting.
    """
    space = f"/api/v1/namespaces/{cluster.namespace}"
    _needed(api, space, "namespace", cluster.namespace)
    if cluster.volume:
        claim = _needed(api, f"{space}/persistentvolumeclaims/{cluster.volume}", "volume", cluster.volume)
        modes = claim.get("spec", {}).get("accessModes", ["ReadWriteMany"])
        if cluster.nodes > 1 and "ReadWriteMany" not in modes:
            raise ConfigError(
                f"Cluster {api.cluster}: several nodes cannot write to the claim {cluster.volume!r}, which allows "
                f"{', '.join(modes)}. Name one with ReadWriteMany in clusters.{api.cluster}.volume, or set nodes = 1."
            )
    if cluster.secret:
        _needed(api, f"{space}/secrets/{cluster.secret}", "secret", cluster.secret)
    if cluster.service_account:
        _needed(api, f"{space}/serviceaccounts/{cluster.service_account}", "service_account", cluster.service_account)
    if cluster.queue:
        path = f"{_kueue(api)}/namespaces/{cluster.namespace}/localqueues/{cluster.queue}"
        _needed(api, path, "queue", cluster.queue)


def _needed(api: Api, path: str, setting: str, name: str) -> Mapping[str, Any]:
    try:
        return api.request("GET", path)
    except MissingError:
        where = "" if setting == "namespace" else f" in the namespace {api.namespace!r}"
        raise ConfigError(
            f"Cluster {api.cluster}: there is no {setting.replace('_', ' ')} {name!r}{where}. Create it "
            f"(docs/clusters.md), or correct clusters.{api.cluster}.{setting}."
        ) from None
    except ForbiddenError:
        return {}


def _kueue(api: Api) -> str:
    """Path of Kueue's API in the version that the cluster prefers. Raises MissingError where it is not installed."""
    try:
        group = api.request("GET", KUEUE)
    except MissingError:
        raise MissingError(
            f"Cluster {api.cluster} has no Kueue. Install it (docs/clusters.md), or leave clusters.{api.cluster}.queue "
            "out."
        ) from None
    return f"{KUEUE}/{group['preferredVersion']['version']}"


def waits(api: Api, name: str, pods: Sequence[Mapping[str, Any]]) -> str | None:
    """Why a job's pods have not all started, in the words of whoever holds them back; None once they have."""
    if pods:
        return waiting_for(pods)
    with suppress(CupolaError):
        for workload in api.request("GET", f"{_kueue(api)}/namespaces/{api.namespace}/workloads").get("items", []):
            owners = {owner["name"] for owner in workload["metadata"].get("ownerReferences", [])}
            if name in owners and not _admitted(workload):
                return f"Kueue: {condition(workload, 'QuotaReserved').get('message', 'not admitted yet')}"
    with suppress(CupolaError):
        failed = {"fieldSelector": "type=Warning,reason=FailedCreate"}
        for event in api.request("GET", f"/api/v1/namespaces/{api.namespace}/events", query=failed).get("items", []):
            if event["involvedObject"]["name"].startswith(name):
                return " ".join(f"FailedCreate: {event.get('message', '')}".split())
    return "its pods are not made yet"


def capacity(api: Api, cluster: KubernetesCluster) -> Capacity:
    """The nodes with the cluster's labels and as many GPUs as it says, and what waits in the namespace.

    Raises:
        ConfigError: this user may not list nodes and pods.
        ServiceError: the API server does not answer.
    """
    selected = ",".join(f"{key}={value}" for key, value in cluster.node_selector.items())
    nodes = api.request("GET", "/api/v1/nodes", query={"labelSelector": selected})["items"]
    living = {"fieldSelector": "status.phase!=Succeeded,status.phase!=Failed"}
    pods = api.request("GET", "/api/v1/pods", query=living)["items"]
    wanted = cluster.gpus_per_node
    used: Counter[str] = Counter()
    for pod in pods:
        ours = JOB_LABEL in pod["metadata"].get("labels", {})
        used[pod["spec"].get("nodeName", "")] += _gpus(pod) if wanted else int(ours)
    down = {node["metadata"]["name"]: why for node in nodes if (why := _out_of_use(node))}
    up = {node["metadata"]["name"]: int(node["status"]["allocatable"].get(GPU, 0)) for node in nodes}
    up = {name: gpus for name, gpus in up.items() if name not in down and gpus >= wanted}
    free = [name for name, gpus in up.items() if (gpus - used[name] >= wanted if wanted else not used[name])]
    return Capacity(nodes=len(up), free=len(free), waiting=_waiting(api, cluster, pods), down=down)


def _gpus(pod: Mapping[str, Any]) -> int:
    containers = pod["spec"].get("containers", [])
    return sum(int(each.get("resources", {}).get("limits", {}).get(GPU, 0)) for each in containers)


def _out_of_use(node: Mapping[str, Any]) -> str | None:
    ready = condition(node, "Ready")
    if ready.get("status") != "True":
        return " ".join(f"not ready: {ready.get('message', 'it does not answer')}".split())
    return "cordoned" if node["spec"].get("unschedulable") else None


def _waiting(api: Api, cluster: KubernetesCluster, pods: Sequence[Mapping[str, Any]]) -> int:
    if cluster.queue:
        workloads = api.request("GET", f"{_kueue(api)}/namespaces/{cluster.namespace}/workloads")["items"]
        mine = [each for each in workloads if each["spec"].get("queueName") == cluster.queue]
        return sum(not _admitted(each) for each in mine)
    pending = [pod["metadata"].get("labels", {}) for pod in pods if pod["status"].get("phase") == "Pending"]
    return len({labels[JOB_LABEL] for labels in pending if JOB_LABEL in labels})


def _admitted(workload: Mapping[str, Any]) -> bool:
    return any(condition(workload, kind).get("status") == "True" for kind in ("QuotaReserved", "Finished"))
