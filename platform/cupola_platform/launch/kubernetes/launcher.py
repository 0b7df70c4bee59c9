"""Jobs on Kubernetes: a TrainJob of Kubeflow Trainer, or a JobSet where that is not installed. The job goes on whoever
watches it."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from cupola_platform.clusters import HOME, KubernetesCluster
from cupola_platform.durable import write_text
from cupola_platform.errors import ConfigError, CupolaError
from cupola_platform.launch import handle
from cupola_platform.launch.capacity import Capacity
from cupola_platform.launch.handle import Handle
from cupola_platform.launch.kubernetes import cluster as clusters
from cupola_platform.launch.kubernetes import manifests
from cupola_platform.launch.kubernetes.api import Api, ConflictError
from cupola_platform.launch.kubernetes.job import STATE, KubernetesJob, read_state
from cupola_platform.launch.kubernetes.logs import PLACES
from cupola_platform.launch.kubernetes.manifests import Order
from cupola_platform.unshared.contract import folder_on_nodes


class KubernetesLauncher:
    """Starts jobs with Kubeflow Trainer or JobSet."""

    def __init__(self, name: str, cluster: KubernetesCluster, workspace: Path, module: str = "cupola_trainer") -> None:
        """
        Args:
            workspace: the workspace's folder, at which pods mount `cluster.volume` if they share it.
            module: the module each rank runs, with the job file as its only argument.
        """
        self.name, self.cluster, self.workspace, self.module = name, cluster, workspace, module
        self.api = Api(name, cluster.context, cluster.namespace)
        self._engine: str | None = None

    def check(self, processes: int) -> None:
        """Refuse a job that the cluster has no room for, or a cluster that lacks what jobs need. Raises ConfigError,
        and ServiceError if it does not answer."""
        self.cluster.spread(processes, self.name)
        self._ready()

    def start(
        self, job_file: Path, *, processes: int, log: Path, env: Mapping[str, str] | None = None,
        fallbacks: Sequence[tuple[Path, int]] = (), restarts: int = 0,
    ) -> KubernetesJob:  # fmt: skip
        """Create a job. Its output is appended to `log` while someone polls; `handle.json` beside the job file names
        it. A fallback is taken if the cluster has too few nodes now.

        Raises:
            ConfigError: the cluster has no room for it, or lacks or refuses something.
            ServiceError: the cluster does not answer.
        """
        self.check(processes)
        jobs = [(job_file, processes), *fallbacks]
        file, ranks = self._choose(jobs)
        engine, folder = self._ready(), job_file.parent
        order = self._order(file, ranks, folder, log.stem, env or {}, restarts)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as out:
            out.write(f"cupola: {engine}/{order.name}: {ranks} ranks on {order.nodes} nodes of {self.name}\n")
        for left in (PLACES, handle.STOP):
            (folder / left).unlink(missing_ok=True)
        terms = {"log": str(log), "jobs": [(str(path), size) for path, size in jobs], "restarts": restarts}
        write_text(folder / STATE, json.dumps({**terms, "env": dict(env or {})}))
        known = Handle(cluster=self.name, id=f"{self.cluster.namespace}/{engine}/{order.name}")
        known.write(folder)  # first: a job that was created is found again, whatever happens to this process
        made: list[str] = []
        try:
            self._create(order, engine, made)
        except BaseException:
            for path in reversed(made):
                with suppress(CupolaError):
                    self.api.request("DELETE", path)
            for name in (handle.FILE, STATE):
                (folder / name).unlink(missing_ok=True)
            raise
        return self._job(self.api, known, folder)

    def attach(self, job_file: Path) -> KubernetesJob | None:
        """The job that an earlier command created for this file, unless it has ended; one that is being deleted is
        waited for."""
        known = handle.read(job_file.parent)
        if known is None or known.cluster != self.name or "status" in read_state(job_file.parent / STATE):
            return None
        namespace, *rest = known.id.split("/")
        if len(rest) != 2:  # of another engine, which this cluster's name stood for
            return None
        running = self._job(Api(self.name, self.cluster.context, namespace), known, job_file.parent)
        return running if running.lives() else None

    def capacity(self) -> Capacity:
        """The cluster's nodes and queue. Raises ServiceError if the API server does not answer, ConfigError if it
        refuses."""
        return clusters.capacity(self.api, self.cluster)

    def _job(self, api: Api, known: Handle, folder: Path) -> KubernetesJob:
        return KubernetesJob(api, known, folder, partial(self._start_again, folder))

    def _start_again(self, folder: Path) -> KubernetesJob:
        terms = read_state(folder / STATE)
        (first, ranks), *others = [(Path(path), size) for path, size in terms["jobs"]]
        return self.start(
            first, processes=ranks, log=Path(terms["log"]), env=terms["env"], fallbacks=others,
            restarts=terms["restarts"],
        )  # fmt: skip

    def _ready(self) -> str:
        """The cluster's engine, once the cluster was seen to have what jobs need; it is asked once."""
        if self._engine is None:
            engine = clusters.engine_of(self.api)
            clusters.check_needs(self.api, self.cluster)
            self._engine = engine
        return self._engine

    def _order(
        self, file: Path, ranks: int, folder: Path, stage: str, env: Mapping[str, str], restarts: int
    ) -> Order:  # fmt: skip
        nodes, per_node = self.cluster.spread(ranks, self.name)
        there = folder_on_nodes(env)
        return Order(
            name=manifests.new_name(stage), stage=stage, job_file=there / file.name if there else file,
            folder=there or folder, nodes=nodes, ranks=per_node, module=self.module, environment=env,
            restarts=restarts, workspace=Path(env[HOME]) if there else self.workspace,
        )  # fmt: skip

    def _choose(self, jobs: Sequence[tuple[Path, int]]) -> tuple[Path, int]:
        """The first job that the nodes which are up have room for; the first of all if none has, or nobody knows."""
        if len(jobs) > 1:
            with suppress(ConfigError):  # it takes a cluster's role to list nodes
                up = self.capacity().nodes
                return next((job for job in jobs if self.cluster.spread(job[1], self.name)[0] <= up), jobs[0])
        return jobs[0]

    def _create(self, order: Order, engine: str, made: list[str]) -> None:
        """Create what the engine wants; `made` gets the paths of what may then exist."""
        if engine == "jobset":
            self._post("jobsets", manifests.job_set(order, self.cluster), made)
            return
        self._post("trainingruntimes", manifests.training_runtime(order, self.cluster), made)
        job = self._post("trainjobs", manifests.train_job(order, self.cluster), made)
        uid = job["metadata"]["uid"]
        owner = {"apiVersion": manifests.TRAINER, "kind": "TrainJob", "name": order.name, "uid": uid}
        self.api.request("PATCH", made[0], body={"metadata": {"ownerReferences": [owner]}})

    def _post(self, plural: str, manifest: Mapping[str, Any], made: list[str]) -> dict[str, Any]:
        """Create an object. One that is there already is ours if an earlier attempt's answer was lost."""
        folder = f"/apis/{manifest['apiVersion']}/namespaces/{self.cluster.namespace}/{plural}"
        made.append(f"{folder}/{manifest['metadata']['name']}")
        try:
            return self.api.request("POST", folder, body=manifest)
        except ConflictError:
            there = self.api.request("GET", made[-1])
            if there["metadata"].get("annotations", {}).items() >= manifest["metadata"]["annotations"].items():
                return there
            made.pop()
            raise
