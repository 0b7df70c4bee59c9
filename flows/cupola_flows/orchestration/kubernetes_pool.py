"""Work pools whose runs are pods of a Kubernetes cluster, for the worker of the package prefect-kubernetes.

The template has no variables: what a deployment or a run sets changes neither the image nor the command nor anything
else of the pod. Which flow runs in it does follow the deployment; see docs/security.md.
"""

import json
from typing import Any

from cupola_platform.clusters import KubernetesCluster
from cupola_platform.errors import ConfigError
from cupola_platform.settings import PREFIX, Settings

TYPE = "kubernetes"
PASSED_ON = ("store_url", "s3_endpoint_url", "s3_region", "mlflow_tracking_uri")
"""Settings of this machine that hold in the pods, too. Those with credentials come from the cluster's `secret`."""

INSISTED_ON = {"parallelism": 1, "completions": 1}
"""Fields of a job that Prefect's worker wants in the pod, where Kubernetes ignores them."""


def pool_name(cluster: str) -> str:
    """The work pool of a cluster."""
    return f"cupola-{cluster}"


def kubernetes_cluster(settings: Settings, name: str) -> KubernetesCluster:
    """The Kubernetes cluster of that name. Raises ConfigError if there is none."""
    cluster = settings.clusters.get(name)
    if not isinstance(cluster, KubernetesCluster):
        known = ", ".join(key for key, of in settings.clusters.items() if isinstance(of, KubernetesCluster)) or "none"
        raise ConfigError(
            f"--on {name}: not a Kubernetes cluster of cupola.toml (there: {known}). Runs of other places start on the "
            "worker of cupola up; the stages' run_on says where their jobs go."
        )
    return cluster


def job_template(settings: Settings, name: str) -> dict[str, Any]:
    """Prefect's base job template for pods that run recipes on a cluster of `cupola.toml`.

    Raises:
        ConfigError: no Kubernetes cluster has that name.
    """
    cluster = kubernetes_cluster(settings, name)
    return {
        "variables": {"type": "object", "properties": {}},
        "job_configuration": {
            "namespace": cluster.namespace,
            "job_manifest": {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": {"generateName": "cupola-run-", "namespace": cluster.namespace, "labels": {}},
                "spec": {
                    "backoffLimit": 0,
                    "ttlSecondsAfterFinished": 3600,
                    "template": {"spec": _pod(settings, cluster)},
                },
            },
        },
    }


def _pod(settings: Settings, cluster: KubernetesCluster) -> dict[str, Any]:
    home = str(settings.home)
    container: dict[str, Any] = {
        "name": "prefect-job",
        "image": cluster.image,
        "env": [{"name": key, "value": value} for key, value in _variables(settings, cluster).items()],
        "args": ["prefect", "flow-run", "execute"],
    }
    pod: dict[str, Any] = {"restartPolicy": "Never", "containers": [container], **INSISTED_ON}
    if cluster.secret:
        container["envFrom"] = [{"secretRef": {"name": cluster.secret}}]
    if cluster.volume:
        container["volumeMounts"] = [{"name": "workspace", "mountPath": home}]
        pod["volumes"] = [{"name": "workspace", "persistentVolumeClaim": {"claimName": cluster.volume}}]
    if cluster.service_account:
        pod["serviceAccountName"] = cluster.service_account
    return pod


def _variables(settings: Settings, cluster: KubernetesCluster) -> dict[str, str]:
    ours = {f"{PREFIX}{name.upper()}": getattr(settings, name) for name in PASSED_ON}
    clusters = {name: of.model_dump(mode="json", exclude_defaults=True) for name, of in settings.clusters.items()}
    return {
        f"{PREFIX}HOME": str(settings.home),
        f"{PREFIX}CLUSTERS": json.dumps(clusters),
        **{name: value for name, value in ours.items() if value},
        **cluster.environment,
    }
