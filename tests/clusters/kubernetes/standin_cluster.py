"""A stand-in for a Kubernetes cluster: no part of it is Kubernetes. It keeps objects, does in a loop what Kubeflow
Trainer, JobSet, Kueue, the scheduler and the kubelets would do with ours, and runs each pod's command as a process of
this machine. All pods share this machine's network, so the first pod's name becomes a free port of the loopback."""

import os
import re
import signal
import socket
import threading
import time
import uuid
from typing import Any

from tests.clusters.kubernetes.standin_container import Container, Object, expand, has, now, set_condition

RESTARTED = "jobset.sigs.k8s.io/restart-attempt"
QUEUE = "kueue.x-k8s.io/queue-name"
GPU = "nvidia.com/gpu"
JOB_DELAY = 1.0
"""Seconds from a pod's failure to its Job's: the Job controller's `syncJobBatchPeriod`."""


class Cluster:
    """Objects, and the loop that acts on them."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.containers: dict[str, Container] = {}
        self.ports: dict[tuple[str, int], int] = {}
        self.apis = {
            "trainer.kubeflow.org/v1alpha1": ["trainjobs", "trainingruntimes"],
            "jobset.x-k8s.io/v1alpha2": ["jobsets"],
        }
        self.images: set[str] = {"cupola:test"}
        self.hidden: list[str] = []
        """Folders of this machine that pods without a shared folder do not see."""
        self.admits = True
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    # what tests do to it

    def add(self, plural: str, name: str, namespace: str = "", **more: Any) -> Object:
        thing = {"metadata": {"name": name, "namespace": namespace, "uid": str(uuid.uuid4())}, **more}
        with self.lock:
            self.objects[plural, namespace, name] = thing
        return thing

    def add_node(self, name: str, gpus: int = 0) -> Object:
        node = self.add("nodes", name, spec={}, status={"allocatable": {GPU: str(gpus), "cpu": "2"}})
        set_condition(node, "Ready", message="kubelet is posting ready status")
        return node

    def lose_node(self, name: str) -> None:
        """A machine without power, and what Kubernetes does some minutes later."""
        with self.lock:
            set_condition(
                self.objects["nodes", "", name], "Ready", "Unknown", message="Kubelet stopped posting node status."
            )
            for pod in [pod for pod in self.all("pods") if pod["spec"].get("nodeName") == name]:
                set_condition(
                    pod,
                    "DisruptionTarget",
                    reason="DeletionByTaintManager",
                    message="Taint manager: deleting due to NoExecute taint",
                )
                if container := self.containers.get(pod["metadata"]["uid"]):
                    container.kill()

    def preempt(self, pod: Object) -> None:
        with self.lock:
            set_condition(
                pod,
                "DisruptionTarget",
                reason="PreemptionByScheduler",
                message="preempting to accommodate a higher priority pod",
            )
            self.containers[pod["metadata"]["uid"]].process.send_signal(signal.SIGTERM)

    def run_out_of_memory(self, pod: Object) -> None:
        self.containers[pod["metadata"]["uid"]].kill("OOMKilled")

    def all(self, plural: str, **labels: str) -> list[Object]:
        with self.lock:
            things = [thing for (kind, _, _), thing in self.objects.items() if kind == plural]
        return [thing for thing in things if labels.items() <= thing["metadata"].get("labels", {}).items()]

    def close(self) -> None:
        self._closed.set()
        self._thread.join(10)
        for container in self.containers.values():
            container.kill()
            container.process.wait(10)

    # what controllers do

    def _loop(self) -> None:
        while not self._closed.wait(0.1):
            with self.lock:
                self._trainer()
                for job_set in self.all("jobsets"):
                    self._job_set(job_set)
                for pod in self.all("pods"):
                    self._kubelet(pod)

    def remove(self, plural: str, thing: Object) -> None:
        self.objects.pop((plural, thing["metadata"]["namespace"], thing["metadata"]["name"]), None)

    def _trainer(self) -> None:
        for job in self.all("trainjobs"):
            name, space = job["metadata"]["name"], job["metadata"]["namespace"]
            job_set = self.objects.get(("jobsets", space, name))
            if "deletionTimestamp" in job["metadata"]:
                if job_set is None:
                    self.remove("trainjobs", job)
                    for runtime in self.all("trainingruntimes"):
                        if job["metadata"]["uid"] in {o["uid"] for o in runtime["metadata"].get("ownerReferences", [])}:
                            self.remove("trainingruntimes", runtime)
                else:
                    job_set["metadata"].setdefault("deletionTimestamp", now())
            elif job_set is None and not has(job, "Complete") and not has(job, "Failed"):
                runtime = self.objects["trainingruntimes", space, job["spec"]["runtimeRef"]["name"]]
                made = self.add("jobsets", name, space, spec=runtime["spec"]["template"]["spec"])
                made["metadata"]["labels"] = dict(job["metadata"].get("labels", {}))
            elif job_set is not None:
                for theirs, ours in (("Completed", "Complete"), ("Failed", "Failed")):
                    if has(job_set, theirs):
                        set_condition(job, ours)

    def _job_set(self, job_set: Object) -> None:
        name, space = job_set["metadata"]["name"], job_set["metadata"]["namespace"]
        mine = [pod for pod in self.all("pods") if pod["metadata"]["jobset"] == name]
        status = job_set.setdefault("status", {"restarts": 0, "restartsCountTowardsMax": 0})
        if "deletionTimestamp" in job_set["metadata"]:
            self._delete(mine)
            if not mine:
                self.remove("jobsets", job_set)
                self.objects.pop(("workloads", space, f"jobset-{name}"), None)
        elif has(job_set, "Completed") or has(job_set, "Failed") or not self._is_admitted(job_set):
            self._delete([pod for pod in mine if pod["status"]["phase"] == "Running"])
        elif any(int(pod["metadata"]["annotations"][RESTARTED]) < status["restarts"] for pod in mine):
            self._delete(mine)  # BlockingRecreate: nothing of the earlier start may be left
        elif not mine:
            self._make_pods(job_set)
        elif failed := [pod for pod in mine if pod["status"]["phase"] == "Failed"]:
            status.setdefault("failing", time.monotonic())
            if time.monotonic() - status["failing"] > JOB_DELAY:
                del status["failing"]
                self._fail(job_set, failed)
        elif all(pod["status"]["phase"] == "Succeeded" for pod in mine):
            set_condition(job_set, "Completed")

    def _fail(self, job_set: Object, failed: list[Object]) -> None:
        policy, status = job_set["spec"]["failurePolicy"], job_set["status"]
        job = job_set["spec"]["replicatedJobs"][0]["template"]["spec"]
        watched = {c["type"] for rule in job["podFailurePolicy"]["rules"] for c in rule["onPodConditions"]}
        reason = "PodFailurePolicy" if any(has(failed[0], kind) for kind in watched) else "BackoffLimitExceeded"
        actions = [rule["action"] for rule in policy["rules"] if reason in rule["onJobFailureReasons"]]
        if actions[:1] == ["RestartJobSetAndIgnoreMaxRestarts"]:
            status["restarts"] += 1
        elif status["restartsCountTowardsMax"] < policy["maxRestarts"]:
            status["restarts"] += 1
            status["restartsCountTowardsMax"] += 1
        else:
            set_condition(
                job_set,
                "Failed",
                reason="ReachedMaxRestarts",
                message="jobset failed due to reaching max number of restarts",
            )

    def _is_admitted(self, job_set: Object) -> bool:
        name, queue = job_set["metadata"]["name"], job_set["metadata"].get("labels", {}).get(QUEUE)
        if queue is None:
            return True
        space = job_set["metadata"]["namespace"]
        workload = self.objects.get(("workloads", space, f"jobset-{name}")) or self.add(
            "workloads", f"jobset-{name}", space, spec={"queueName": queue, "podSets": [{"name": "node", "count": 1}]}
        )
        workload["metadata"]["ownerReferences"] = [{"name": name, "uid": job_set["metadata"]["uid"]}]
        message = (
            ""
            if self.admits
            else "couldn't assign flavors to pod set node: insufficient unused quota for cpu in flavor default, 2 more needed"
        )
        set_condition(workload, "QuotaReserved", str(self.admits), message=message)
        return self.admits

    def _make_pods(self, job_set: Object) -> None:
        job = job_set["spec"]["replicatedJobs"][0]
        template = job["template"]["spec"]["template"]
        name, attempt = job_set["metadata"]["name"], job_set["status"]["restarts"]
        for index in range(job["template"]["spec"]["completions"]):
            pod = self.add(
                "pods", f"{name}-{job['name']}-0-{index}-{uuid.uuid4().hex[:5]}", job_set["metadata"]["namespace"],
                spec={**template["spec"]}, status={"phase": "Pending"},
            )  # fmt: skip
            labels = {**template["metadata"]["labels"], "batch.kubernetes.io/job-completion-index": str(index)}
            pod["metadata"] |= {"labels": labels, "annotations": {RESTARTED: str(attempt)}, "jobset": name}

    def _delete(self, pods: list[Object]) -> None:
        for pod in pods:
            self.delete_pod(pod, pod["spec"]["terminationGracePeriodSeconds"])

    def delete_pod(self, pod: Object, grace: float) -> None:
        metadata, container = pod["metadata"], self.containers.get(pod["metadata"]["uid"])
        if "deletionTimestamp" not in metadata:
            metadata["deletionTimestamp"] = now()
            if container is not None and not container.ended():
                container.process.send_signal(signal.SIGTERM)
        metadata["kill_at"] = min(metadata.get("kill_at", float("inf")), time.monotonic() + grace)

    # what the scheduler and the kubelets do

    def _kubelet(self, pod: Object) -> None:
        metadata, status = pod["metadata"], pod["status"]
        container = self.containers.get(metadata["uid"])
        if "deletionTimestamp" in metadata:
            if container is not None and not container.ended():
                if time.monotonic() > metadata["kill_at"]:
                    container.kill()
                return
            if container is not None and status["phase"] == "Running":
                self._ended(pod, container)  # seen for one turn of the loop, as on a real node
                return
            self.remove("pods", pod)
        elif container is None:
            self._schedule(pod)
        elif container.ended() and status["phase"] == "Running":
            self._ended(pod, container)

    def _ended(self, pod: Object, container: Container) -> None:
        code = container.process.returncode
        code = 128 - code if code < 0 else code
        pod["status"]["phase"] = "Succeeded" if code == 0 else "Failed"
        state = {"exitCode": code, "reason": container.killed_for or ("Completed" if code == 0 else "Error")}
        pod["status"]["containerStatuses"] = [{"name": "node", "state": {"terminated": state}}]

    def _schedule(self, pod: Object) -> None:
        spec, given = pod["spec"], pod["spec"]["containers"][0]
        taken = {other["spec"].get("nodeName") for other in self.all("pods")}
        free = [node["metadata"]["name"] for node in self.all("nodes") if has(node, "Ready")]
        free = [name for name in free if name not in taken]
        if "nodeName" not in spec:
            if not free:
                set_condition(
                    pod,
                    "PodScheduled",
                    "False",
                    reason="Unschedulable",
                    message=f"0/{len(self.all('nodes'))} nodes are available: {len(self.all('nodes'))} Insufficient {GPU}.",
                )
                return
            spec["nodeName"] = free[0]
            set_condition(pod, "PodScheduled")
        waiting = self._cannot_start(pod)
        if waiting:
            pod["status"]["containerStatuses"] = [
                {"name": "node", "image": given["image"], "state": {"waiting": waiting}}
            ]
            return
        environment = self._environment(pod)
        self.containers[pod["metadata"]["uid"]] = Container(pod, environment, self._dns(pod), self.hidden)
        pod["status"] |= {
            "phase": "Running",
            "containerStatuses": [{"name": "node", "state": {"running": {"startedAt": now()}}}],
        }

    def _cannot_start(self, pod: Object) -> Object | None:
        given = pod["spec"]["containers"][0]
        if given["image"] not in self.images:
            return {"reason": "ImagePullBackOff", "message": f'Back-off pulling image "{given["image"]}": not found'}
        for source in given.get("envFrom", []):
            name = source["secretRef"]["name"]
            if ("secrets", pod["metadata"]["namespace"], name) not in self.objects:
                return {"reason": "CreateContainerConfigError", "message": f'secret "{name}" not found'}
        return None

    def _environment(self, pod: Object) -> dict[str, str]:
        given, metadata = pod["spec"]["containers"][0], pod["metadata"]
        environment = {
            "PATH": os.environ["PATH"],
            "JOB_COMPLETION_INDEX": metadata["labels"]["batch.kubernetes.io/job-completion-index"],
        }
        for source in given.get("envFrom", []):
            environment |= self.objects["secrets", metadata["namespace"], source["secretRef"]["name"]]["stringData"]
        for each in given["env"]:
            if "valueFrom" in each:
                match = re.fullmatch(r"metadata\.annotations\['(.*)'\]", each["valueFrom"]["fieldRef"]["fieldPath"])
                assert match is not None
                environment[each["name"]] = metadata["annotations"][match[1]]
            else:
                environment[each["name"]] = expand(each["value"], environment)
        return environment

    def _dns(self, pod: Object) -> dict[str, str]:
        """The first pod's stable name and port, and where it really listens."""
        name, attempt = pod["metadata"]["jobset"], int(pod["metadata"]["annotations"][RESTARTED])
        if (name, attempt) not in self.ports:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.ports[name, attempt] = probe.getsockname()[1]
        return {f"{name}-node-0-0.{name}:29400": f"127.0.0.1:{self.ports[name, attempt]}"}
