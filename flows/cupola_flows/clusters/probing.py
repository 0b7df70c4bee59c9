"""Running a probe job on the nodes of a cluster."""

import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from cupola_flows.execution.jobs import error_of, tail
from cupola_platform.clusters import Cluster
from cupola_platform.errors import ConfigError, ServiceError, StageFailedError
from cupola_platform.launch.capacity import Capacity
from cupola_platform.launch.interface import Launcher, RunningJob
from cupola_platform.launch.launcher import make_launcher
from cupola_platform.settings import Settings
from cupola_trainer.config import JOB, JOB_VARIABLE, LayoutConfig, ProbeJob, ProbeReport, write_job
from cupola_trainer.config.probe import REPORT, TOKEN

PROBE = "probe-"
"""How the name of a probe's work folder begins; other work folders are named by their stage's fingerprint."""
LOOK_EVERY = 1.0
"""Seconds between looks at the job."""


@dataclass(frozen=True)
class Probe:
    """A finished probe."""

    report: ProbeReport
    down: Mapping[str, str]
    """Nodes that could not be probed, each with the engine's reason; empty if there were enough others."""


def probe(settings: Settings, name: str, nodes: int | None, *, minutes: float, say: Callable[[str], None]) -> Probe:
    """Run a probe job on a cluster's nodes, and clean up after it.

    Args:
        nodes: None for as many as a job may take and are up.
        minutes: how long the job may wait in the cluster's queue.

    Raises:
        ConfigError: no such cluster, more nodes than it has, or the engine refuses the job.
        ServiceError: the engine does not answer, or has no room in time.
        StageFailedError: the job failed; with the end of its log.
    """
    launcher = make_launcher(settings, name)
    cluster = settings.clusters[name]
    launcher.check(cluster.per_node)  # before it is asked for room: what it lacks is said once
    count, down = _how_many(name, cluster, nodes, _capacity(launcher, say))
    launcher.check(count * cluster.per_node)
    folder = settings.home / "work" / f"{PROBE}{secrets.token_hex(6)}"
    log = settings.home / "logs" / f"probe-{name}.log"
    log.unlink(missing_ok=True)
    folder.mkdir(parents=True)
    try:
        job = _job(settings, folder, count * cluster.per_node)
        say(f"Probing {count} x {cluster.per_node} {'GPUs' if cluster.gpus_per_node else 'ranks'} of {name}")
        variables = {JOB_VARIABLE: JOB.dump_json(job).decode()}
        with launcher.start(folder / "job.json", processes=job.layout.world_size, log=log, env=variables) as running:
            status = _wait(running, name, minutes, say)
            return Probe(_report(job, running, status, name, log), down)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for each in (folder.parent, log.parent, settings.home):
            with suppress(OSError):
                each.rmdir()  # only if nothing else is there


def _capacity(launcher: Launcher, say: Callable[[str], None]) -> Capacity | None:
    """None where the engine refuses to say, as Kubernetes does without a cluster's role. It may take the job anyway."""
    try:
        return launcher.capacity()
    except ConfigError as error:
        say(str(error))
        return None


def _how_many(
    name: str, cluster: Cluster, nodes: int | None, capacity: Capacity | None
) -> tuple[int, Mapping[str, str]]:
    """Nodes to probe, and those that are missing because they are down."""
    if nodes is not None and nodes > cluster.nodes:
        raise ConfigError(
            f"--nodes {nodes}: a job of cluster {name} may take {cluster.nodes}. Give fewer, or raise "
            f"clusters.{name}.nodes."
        )
    if capacity is None:
        return nodes or cluster.nodes, {}
    if capacity.nodes < (nodes or 1):
        reasons = "; ".join(f"{node} is {why}" for node, why in capacity.down.items()) or "No node is down"
        raise ConfigError(f"Cluster {name} has {capacity.nodes} nodes up, and the probe needs {nodes or 1}. {reasons}.")
    down = capacity.down if nodes is None and capacity.nodes < cluster.nodes else {}
    return nodes or min(cluster.nodes, capacity.nodes), down


def _job(settings: Settings, folder: Path, ranks: int) -> ProbeJob:
    job = ProbeJob(
        output=folder, layout=LayoutConfig(dp=ranks), token=secrets.token_hex(16), store_url=settings.store_url,
        s3_endpoint_url=settings.s3_endpoint_url, s3_region=settings.s3_region,
    )  # fmt: skip
    (folder / TOKEN).write_text(job.token)
    write_job(job, folder / "job.json")
    return job


def _wait(running: RunningJob, name: str, minutes: float, say: Callable[[str], None]) -> int:
    """The job's exit status. Raises ServiceError if it is still in the queue after `minutes`."""
    until = time.monotonic() + 60 * minutes
    said = None
    while (status := running.wait(LOOK_EVERY)) is None:
        reason = running.waits()
        if reason is not None and time.monotonic() > until:
            raise ServiceError(
                f"Cluster {name} had no room for the probe within {minutes:g} minutes: {reason}. Probe fewer nodes "
                "with --nodes, or give it longer with --wait."
            )
        if reason is not None and reason != said:
            say(f"In the queue of {name}: {reason}")
            said = reason
    return status


def _report(job: ProbeJob, running: RunningJob, status: int, name: str, log: Path) -> ProbeReport:
    if error := error_of(job):
        raise type(error)(f"The probe of cluster {name} failed: {error}")
    try:
        if status == 0:
            return ProbeReport.model_validate_json((job.output / REPORT).read_bytes())
        why = running.reason() or f"its processes ended with status {status}"
    except FileNotFoundError:
        why = f"its report did not come back to {job.output}. The nodes must see that folder"
    except ValidationError:
        why = "its report is not one: the nodes run another version of Cupola"
    more = f" Log: {log}\n{tail(log)}" if log.exists() else ""
    raise StageFailedError(f"The probe of cluster {name} failed: {why}.{more}")
