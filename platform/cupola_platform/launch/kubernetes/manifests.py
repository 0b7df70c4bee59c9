"""What a job is on Kubernetes: a JobSet of one Indexed Job, a pod for each node; Kubeflow Trainer is given the same
JobSet as the template of a TrainingRuntime of its own, and a TrainJob that refers to it.

The set restarts as a whole, because ranks that are left cannot go on without the others. A pod that Kubernetes itself
ends (preemption, eviction, a lost node) fails its Job by the Job's pod failure policy, which JobSet's failure policy
does not count; any other failure counts.
"""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cupola_platform.clusters import KubernetesCluster

JOBSET = "jobset.x-k8s.io/v1alpha2"
TRAINER = "trainer.kubeflow.org/v1alpha1"
PLURALS = {"jobset": (JOBSET, "jobsets"), "trainjob": (TRAINER, "trainjobs")}
"""API and resource of the two engines, by the name that kubectl takes."""
GPU = "nvidia.com/gpu"
NODE = "node"
"""Name of the replicated job and of its container, as Kubeflow Trainer wants it."""
JOB_LABEL, STAGE_LABEL = "cupola/job", "cupola/stage"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
ATTEMPT = "CUPOLA_ATTEMPT"
"""Environment variable of pods: how often the job has started before."""
INDEX = "JOB_COMPLETION_INDEX"
"""Environment variable that Kubernetes sets: the pod's number among the job's nodes."""
RESTARTED = "jobset.sigs.k8s.io/restart-attempt"
"""Annotation of pods: how often their JobSet has started again."""
PORT = 29400
"""Of the rendezvous, in the first pod's own network."""
START_WITHIN = 3600
"""Seconds for which the pods that are up wait for the others: images may have to be pulled first."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """One start of a job."""

    name: str
    """Of the objects in the cluster."""
    stage: str
    """What the job is called on this side: its log's name, with the stage and the fingerprint."""
    job_file: Path
    """In the pods, like the other paths."""
    folder: Path
    """The job's folder, where every start leaves what the next one must know."""
    nodes: int
    ranks: int
    """Of each node."""
    module: str
    environment: Mapping[str, str]
    restarts: int
    workspace: Path
    """Where the pods have their workspace."""


def new_name(stage: str) -> str:
    """A name that no earlier start had: valid in DNS, traceable to the stage, short enough for the pods' host names."""
    slug = re.sub(r"[^a-z0-9]+", "-", stage.lower())[:24].strip("-")
    return "-".join(part for part in ("cupola", slug, secrets.token_hex(4)) if part)


def job_set(order: Order, cluster: KubernetesCluster) -> dict[str, Any]:
    """The JobSet of a job."""
    return {"apiVersion": JOBSET, "kind": "JobSet", "metadata": _metadata(order, cluster), "spec": _set(order, cluster)}


def training_runtime(order: Order, cluster: KubernetesCluster) -> dict[str, Any]:
    """The TrainingRuntime that a TrainJob of ours refers to."""
    spec = {"mlPolicy": {"numNodes": order.nodes}, "template": {"spec": _set(order, cluster)}}
    metadata = _metadata(order, cluster.but(queue=None))  # what queues is the TrainJob
    return {"apiVersion": TRAINER, "kind": "TrainingRuntime", "metadata": metadata, "spec": spec}


def train_job(order: Order, cluster: KubernetesCluster) -> dict[str, Any]:
    """The TrainJob of a job."""
    runtime = {"apiGroup": TRAINER.partition("/")[0], "kind": "TrainingRuntime", "name": order.name}
    return {
        "apiVersion": TRAINER, "kind": "TrainJob", "metadata": _metadata(order, cluster),
        "spec": {"runtimeRef": runtime, "trainer": {"numNodes": order.nodes}},
    }  # fmt: skip


def _metadata(order: Order, cluster: KubernetesCluster) -> dict[str, Any]:
    labels = _labels(order)
    if cluster.queue:
        labels[QUEUE_LABEL] = cluster.queue
    return {
        "name": order.name, "namespace": cluster.namespace, "labels": labels,
        "annotations": {"cupola/job-file": str(order.job_file)},
    }  # fmt: skip


def _labels(order: Order) -> dict[str, str]:
    stage = re.sub(r"[^A-Za-z0-9_.-]+", "-", order.stage)[:63].strip("-_.")
    labels = {"app.kubernetes.io/managed-by": "cupola", JOB_LABEL: order.name}
    return {**labels, STAGE_LABEL: stage} if stage else labels


def _set(order: Order, cluster: KubernetesCluster) -> dict[str, Any]:
    ended_by_kubernetes = {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    uncounted = {
        "name": "disruption", "action": "RestartJobSetAndIgnoreMaxRestarts", "onJobFailureReasons": ["PodFailurePolicy"]
    }  # fmt: skip
    job = {
        "completionMode": "Indexed", "parallelism": order.nodes, "completions": order.nodes, "backoffLimit": 0,
        "podFailurePolicy": {"rules": [ended_by_kubernetes]},
        "template": {"metadata": {"labels": _labels(order)}, "spec": _pod(order, cluster)},
    }  # fmt: skip
    step = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    return {
        "failurePolicy": {
            "maxRestarts": order.restarts, "restartStrategy": "BlockingRecreate", "rules": [uncounted],
        },
        "network": {"enableDNSHostnames": True, "subdomain": order.name, "publishNotReadyAddresses": True},
        "replicatedJobs": [
            {"name": NODE, "replicas": 1, "template": {"metadata": {"labels": {**_labels(order), **step}}, "spec": job}}
        ],
    }  # fmt: skip


def _pod(order: Order, cluster: KubernetesCluster) -> dict[str, Any]:
    security: dict[str, Any] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    if cluster.user is not None:
        security |= {"runAsUser": cluster.user, "runAsGroup": cluster.user, "fsGroup": cluster.user,
                     "fsGroupChangePolicy": "OnRootMismatch"}  # fmt: skip
    workspace = {"persistentVolumeClaim": {"claimName": cluster.volume}} if cluster.shared else {"emptyDir": {}}
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": cluster.grace,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "shareProcessNamespace": True,  # process 1 is then the pause container, which collects orphans
        "securityContext": security,
        "containers": [_container(order, cluster)],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}, {"name": "workspace", **workspace}],
    }
    if cluster.service_account:
        pod["serviceAccountName"] = cluster.service_account
    if cluster.node_selector:
        pod["nodeSelector"] = dict(cluster.node_selector)
    if cluster.gpus_per_node:
        pod["tolerations"] = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
    return pod


def _container(order: Order, cluster: KubernetesCluster) -> dict[str, Any]:
    attempt = {"name": ATTEMPT, "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{RESTARTED}']"}}}
    variables = {"PYTHONUNBUFFERED": "1", **cluster.environment, **order.environment}
    container: dict[str, Any] = {
        "name": NODE,
        "image": cluster.image,
        "command": _command(order, cluster),
        "env": [attempt, *({"name": name, "value": literal(value)} for name, value in variables.items())],
        "resources": _resources(order, cluster),
        "workingDir": str(order.workspace),
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"}, {"name": "workspace", "mountPath": str(order.workspace)},
        ],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }  # fmt: skip
    if cluster.secret:
        container["envFrom"] = [{"secretRef": {"name": cluster.secret}}]
    return container


def _command(order: Order, cluster: KubernetesCluster) -> list[str]:
    """The command of every pod. The pods differ by the variables that Kubernetes sets, which `$(NAME)` stands for."""
    given = [
        str(cluster.python or "python"), "-m", "cupola_platform.launch.kubernetes.pod", str(order.folder),
        str(order.restarts), f"--interface={cluster.interface or ''}",
        f"--nodes={order.nodes}", f"--ranks={order.ranks}", f"--patience={START_WITHIN}",
        f"--head={order.name}-{NODE}-0-0.{order.name}:{PORT}", f"--node={INDEX}",
    ]  # fmt: skip
    rank = ["--", "-m", order.module, str(order.job_file)]
    command = [*map(literal, given), f"--id={order.name}.$({ATTEMPT})", *map(literal, rank)]
    if cluster.setup:
        script = "\n".join(["set -e", *cluster.setup, 'exec "$@"'])
        command = ["bash", "-c", literal(script), "cupola", *command]
    return command


def _resources(order: Order, cluster: KubernetesCluster) -> dict[str, Any]:
    requests: dict[str, str] = dict(cluster.resources)
    limits: dict[str, str] = dict(cluster.resources)
    if cluster.gpus_per_node:
        limits[GPU] = requests[GPU] = str(order.ranks)
    if cluster.cpus:
        requests["cpu"] = f"{round(cluster.cpus * 1000)}m"
    if cluster.memory:
        limits["memory"] = requests["memory"] = f"{round(cluster.memory * 1024)}Mi"
    return {"requests": requests, "limits": limits}


def literal(text: str) -> str:
    """Text that Kubernetes leaves as it is in commands and variables, where it replaces `$(NAME)`."""
    return text.replace("$(", "$$(")
