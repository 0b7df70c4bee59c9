"""Jobs on a Slurm cluster: sbatch starts `slurm_batch`, which starts a torchrun agent on each node. The job goes on
whoever watches it."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cupola_platform.clusters import SlurmCluster
from cupola_platform.errors import ConfigError, ServiceError, StageFailedError
from cupola_platform.launch import handle
from cupola_platform.launch.capacity import Capacity
from cupola_platform.launch.handle import CANCELLED, STOP, Handle
from cupola_platform.launch.local import GRACE_SECONDS
from cupola_platform.launch.polled import PolledJob
from cupola_platform.launch.slurm_batch import EXIT_STATUS, HISTORY, TERMS, Terms, choose, fields, is_out_of_use
from cupola_platform.nearest import did_you_mean
from cupola_platform.security.credential import without_credentials
from cupola_platform.unshared.contract import folder_on_nodes
from cupola_platform.unshared.files import LOG

SCRIPT = "slurm.sh"
POLL_EVERY = 2.0
"""Seconds between two questions to Slurm's controller about one job."""
ANSWER_WITHIN = 12.0
"""Seconds for the answer about nodes and queue. Slurm's commands themselves give up on a dead controller after 10."""
PATIENCE = 300.0
"""Seconds for which a controller that does not answer is asked again."""
FOLDER_PATIENCE = 30.0
"""Seconds for a file of the job's first node to appear here: network file systems cache folders."""
LIVING = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "RESIZING",
          "SIGNALING", "STAGE_OUT", "STOPPED", "PREEMPTED", "SPECIAL_EXIT", "REQUEUE_FED", "RESV_DEL_HOLD"}  # fmt: skip
IN_WORDS = {
    "CANCELLED": CANCELLED,
    "TIMEOUT": "it reached its time limit before it could save",
    "NODE_FAIL": "a node failed",
    "OUT_OF_MEMORY": "it ran out of memory",
    "BOOT_FAIL": "a node did not boot",
    "DEADLINE": "it reached its deadline",
    "PREEMPTED": "it was preempted",
}


class SlurmJob(PolledJob):
    """A job that Slurm knows by its number."""

    def __init__(self, cluster: str, number: str, folder: Path, *, shared: bool = True) -> None:
        """`shared`: whether the job's nodes see `folder`."""
        self.cluster, self.number, self.folder, self.shared = cluster, number, folder, shared
        self._asked = float("-inf")
        self._status: int | None = None
        self._waits: str | None = None

    @property
    def name(self) -> str:
        """As a person would look for it."""
        return f"job {self.number} of cluster {self.cluster}"

    def waits(self) -> str | None:
        """Slurm's reason why the job is in the queue, when it was last asked; None once it runs."""
        return self._waits

    def reason(self) -> str | None:
        """Why Slurm ended the job, in words; None if it ended by itself or still runs."""
        known = _ask(self.number)
        if not known and not self._ended():
            return "Slurm no longer knows it, and it left no exit status"
        if known.get("Reason") == "JobLaunchFailure":
            return f"node {known.get('BatchHost')} could not start it: it must see {self.folder} and the job's log"
        return IN_WORDS.get(known.get("JobState", ""))

    def poll(self) -> int | None:
        """Exit status of the job once it has left the queue, else None."""
        if self._status is None and time.monotonic() - self._asked >= POLL_EVERY:
            self._asked = time.monotonic()
            answer = _ask(self.number)
            state = answer.get("JobState")
            why = answer.get("Reason", "None")
            self._waits = (why if why != "None" else "not scheduled yet") if state == "PENDING" else None
            if state == "PENDING" and why not in ("None", "Priority"):
                self._make_do(answer)
            if state not in LIVING:
                self._status = self._exit_status(answer)
        return self._status

    def stop(self, grace_seconds: float = GRACE_SECONDS) -> int:
        """Ask the ranks to save and exit, then cancel what is left after `grace_seconds`. Returns the exit status."""
        (self.folder / STOP).touch()
        if _ask(self.number).get("JobState") == "PENDING":
            grace_seconds = 0.0
        else:
            _slurm(["scancel", "--signal=TERM", self.number], tolerant=True)
        if self.wait(grace_seconds) is None:
            _slurm(["scancel", self.number], tolerant=True)
        status = self.wait()
        assert status is not None
        return status

    def _make_do(self, answer: Mapping[str, str]) -> None:
        """Ask for fewer nodes where the partition has not as many left as the job waits for, and a fallback fits."""
        try:
            terms = Terms.read(self.folder / TERMS)
        except (FileNotFoundError, ValueError, TypeError):
            return
        try:
            up = _up(_nodes(answer.get("Partition", ""))[1])
        except ServiceError:  # asked again at the next look
            return
        wanted = int(answer.get("NumNodes", "1").partition("-")[0])
        chosen = choose(terms.jobs, terms.per_node, up)
        if chosen and up < wanted:
            _slurm(["scontrol", "update", f"JobId={self.number}", f"NumNodes={chosen[2]}"], tolerant=True)

    def _exit_status(self, answer: Mapping[str, str]) -> int:
        """What the batch step left, or else Slurm's word.

        Raises:
            ConfigError: it ended by itself and left nothing here, so its first node does not see this folder.
        """
        ended_by_itself = self.shared and answer.get("JobState") in ("COMPLETED", "FAILED")
        until = time.monotonic() + (FOLDER_PATIENCE if ended_by_itself else 0)
        while not (left := self._ended()) and time.monotonic() < until:
            time.sleep(0.5)
        if left:
            return int(left["status"])
        if ended_by_itself:
            raise ConfigError(
                f"Cluster {self.cluster}: node {answer.get('BatchHost')} wrote nothing into {self.folder}, so it does "
                f"not share that folder, or Cupola does not start there. Mount the workspace on every node at this "
                f"path, or set clusters.{self.cluster}.shared = false."
            )
        status, _, signal = answer.get("ExitCode", "0:0").partition(":")
        return int(status) or (0 if answer.get("JobState") == "COMPLETED" and signal == "0" else 1)

    def _ended(self) -> dict[str, Any]:
        """What the batch step left as its last act; empty if it was ended before."""
        try:
            left: dict[str, Any] = json.loads((self.folder / EXIT_STATUS).read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return left if left.get("job") == self.number else {}


class SlurmLauncher:
    """Starts jobs with sbatch."""

    def __init__(self, name: str, cluster: SlurmCluster, module: str = "cupola_trainer") -> None:
        self.name, self.cluster, self.module = name, cluster, module

    def check(self, processes: int) -> None:
        """Refuse a job that the cluster has no room for, or a machine without Slurm's commands. Raises ConfigError."""
        self.cluster.spread(processes, self.name)
        self._has_slurm()

    def start(
        self, job_file: Path, *, processes: int, log: Path, env: Mapping[str, str] | None = None,
        fallbacks: Sequence[tuple[Path, int]] = (), restarts: int = 0,
    ) -> SlurmJob:  # fmt: skip
        """Submit a job. Its output is appended to `log`; `handle.json` beside the job file names it.

        Raises:
            ConfigError: the cluster has no room for it, or Slurm refuses it.
        """
        self.check(processes)
        folder = job_file.parent
        log.parent.mkdir(parents=True, exist_ok=True)
        for name in (EXIT_STATUS, HISTORY, STOP):
            (folder / name).unlink(missing_ok=True)
        jobs = [(job_file, processes), *fallbacks]
        terms = Terms(
            jobs=tuple((str(file), ranks) for file, ranks in jobs), per_node=self.cluster.per_node,
            python=str(self.cluster.python or sys.executable), module=self.module,
            interface=self.cluster.interface or "", restarts=restarts,
        )  # fmt: skip
        terms.write(folder / TERMS)
        nodes, _ = self.cluster.spread(processes, self.name)
        (folder / SCRIPT).write_text(self._script(folder, terms, nodes, log, env or {}))
        printed = _slurm(["sbatch", "--parsable", str(folder / SCRIPT)], cluster=self.name)
        number = printed.strip().partition(";")[0]
        Handle(cluster=self.name, id=number).write(folder)
        return self._job(number, folder)

    def attach(self, job_file: Path) -> SlurmJob | None:
        """The job that an earlier command submitted for this file, if Slurm still has it in its queue."""
        known = handle.read(job_file.parent)
        if known is None or known.cluster != self.name:
            return None
        self._has_slurm()
        if _ask(known.id).get("JobState") not in LIVING:
            return None
        return self._job(known.id, job_file.parent)

    def capacity(self) -> Capacity:
        """The nodes and the queue of the partition that jobs go to.

        Raises:
            ServiceError: the controller does not answer.
            ConfigError: this machine has no Slurm, or Slurm no such partition.
        """
        self._has_slurm()
        partitions, states = _nodes(self.cluster.partition or "", self.name)
        queue = ["squeue", "--all", "--noheader", "--array", "--states=PENDING", "--format=%i"]
        waiting = _answer([*queue, f"--partition={','.join(partitions)}"], self.name).split()
        return Capacity(
            nodes=_up(states),
            free=sum(state.rstrip("~#") == "idle" for state, _ in states.values()),
            waiting=len(waiting),
            down={name: _in_words(state, why) for name, (state, why) in states.items() if not _takes_jobs(state)},
        )

    def _has_slurm(self) -> None:
        if shutil.which("sbatch") is None:
            raise ConfigError(
                f"Cluster {self.name} is Slurm's, and sbatch is not on PATH. Run this on a login node, or install "
                "Slurm's client."
            )

    def _job(self, number: str, folder: Path) -> SlurmJob:
        return SlurmJob(self.name, number, folder, shared=self.cluster.shared)

    def _script(self, folder: Path, terms: Terms, nodes: int, log: Path, env: Mapping[str, str]) -> str:
        cluster = self.cluster
        there = folder_on_nodes(env)
        options: dict[str, str | None] = {
            "job-name": "cupola",
            "nodes": str(nodes),
            "ntasks-per-node": "1",
            "output": _quoted(str(log).replace("%", "%%")) if there is None else os.devnull,
            "open-mode": "append",
            "signal": f"B:USR1@{cluster.save_ahead}",
            "partition": cluster.partition,
            "account": cluster.account,
            "time": cluster.time_limit,
            "gpus-per-node": str(cluster.gpus_per_node) if cluster.gpus_per_node else None,
            **cluster.sbatch,
        }
        lines = ["#!/bin/bash", "#SBATCH --requeue", "#SBATCH --no-kill", "#SBATCH --exclusive"]
        lines += [f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None]
        variables = {**cluster.environment, **env}
        lines += [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
        lines += cluster.setup
        if there:  # the first node has neither the folder nor the terms
            lines += [
                f"mkdir -p {shlex.quote(str(there))}",
                f"printf %s {shlex.quote(terms.text())} > {shlex.quote(str(there / TERMS))}",
                f"exec > {shlex.quote(str(there / LOG))} 2>&1",
            ]
        python = shlex.quote(str(cluster.python or sys.executable))
        at = shlex.quote(str((there or folder) / TERMS))
        lines.append(f"exec {python} -m cupola_platform.launch.slurm_batch {at}")
        return "\n".join(lines) + "\n"


def _quoted(path: str) -> str:
    """A path for an #SBATCH line, whose quotes are sbatch's own and have no escapes."""
    if '"' in path or "\n" in path:
        raise ConfigError(f"Slurm cannot write a log to {path!r}. Use a workspace without quotes in its path.")
    return f'"{path}"'


def _nodes(partitions: str, cluster: str = "") -> tuple[list[str], dict[str, tuple[str, str]]]:
    """The names of partitions (given with commas between; the default one if empty), and the state of each of their
    nodes with its reason. Raises ConfigError for one that does not exist, which sinfo does not mind."""
    lines = _answer(["sinfo", "--all", "--noheader", "--Node", "--format=%P|%N|%T|%E"], cluster).splitlines()
    nodes: dict[str, dict[str, tuple[str, str]]] = {}
    default: list[str] = []
    for marked, node, state, why in (line.split("|", 3) for line in lines):
        name = marked.removesuffix("*")  # of the default partition
        default = [name] if name != marked else default
        nodes.setdefault(name, {})[node] = state, why
    names = partitions.split(",") if partitions else default
    if not names:
        raise ConfigError(f"Cluster {cluster}: Slurm has no default partition. Set clusters.{cluster}.partition.")
    for name in names:
        if name not in nodes:
            raise ConfigError(f"Cluster {cluster}: Slurm has no partition {name!r}.{did_you_mean(name, nodes)}")
    return names, {node: state for name in names for node, state in nodes[name].items()}


def _up(nodes: Mapping[str, tuple[str, str]]) -> int:
    """How many nodes could take a new job, now or once others end."""
    return sum(_takes_jobs(state) for state, _ in nodes.values())


def _ask(number: str) -> dict[str, str]:
    """What Slurm knows about a job; empty for one that it does not know. Asks again while no controller answers."""
    deadline = time.monotonic() + PATIENCE
    while True:
        done = _run(["scontrol", "--oneliner", "show", "job", number])
        if done.returncode == 0:
            return fields(done.stdout)
        if "Invalid job id" in done.stderr:
            return {}
        if time.monotonic() > deadline:
            raise StageFailedError(f"Slurm's controller does not answer: {_line(done.stderr)} The job goes on.")
        time.sleep(POLL_EVERY)


def _takes_jobs(state: str) -> bool:
    """Whether a node in one of sinfo's states runs a job now or could start one."""
    return not is_out_of_use(state) and not state.startswith(("drain", "maint", "reboot"))


def _in_words(state: str, why: str) -> str:
    """sinfo marks a node that does not answer with a star, and gives `none` for no reason."""
    words = f"{state[:-1]}, does not answer" if state.endswith("*") else state
    return words if why == "none" else f"{words}: {why}"


def _answer(command: Sequence[str], cluster: str) -> str:
    try:
        done = _run(command, timeout=ANSWER_WITHIN)
    except subprocess.TimeoutExpired:
        raise ServiceError(f"Cluster {cluster}: {command[0]} does not answer in {ANSWER_WITHIN:.0f} s.") from None
    if done.returncode:
        raise ServiceError(f"Cluster {cluster}: {command[0]} does not answer: {_line(done.stderr)}")
    return done.stdout


def _slurm(command: Sequence[str], cluster: str = "", *, tolerant: bool = False) -> str:
    """A command's output. Raises ConfigError with Slurm's own reason, unless `tolerant` (the job may have ended)."""
    done = _run(command)
    if done.returncode and not tolerant:
        where = f"Cluster {cluster}: " if cluster else ""
        raise ConfigError(f"{where}{command[0]} refused: {_line(done.stderr)}")
    return done.stdout


def _run(command: Sequence[str], timeout: float | None = None) -> "subprocess.CompletedProcess[str]":
    environment = {**without_credentials(os.environ), "LC_ALL": "C"}
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=timeout)


def _line(text: str) -> str:
    lines = [line.partition("error: ")[2] or line for line in text.strip().splitlines()]
    return f"{lines[-1]}." if lines else "no reason given."
