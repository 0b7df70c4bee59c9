"""Jobs on a Slurm cluster: sbatch starts `batch`, which starts a torchrun agent on each node. The job goes on whoever
watches it."""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from cupola_platform.clusters import SlurmCluster
from cupola_platform.errors import ConfigError, CupolaError, ServiceError
from cupola_platform.launch import handle
from cupola_platform.launch.capacity import Capacity
from cupola_platform.launch.handle import STOP, Handle
from cupola_platform.launch.slurm import commands
from cupola_platform.launch.slurm.batch import EXIT_STATUS, HISTORY, TERMS, Terms
from cupola_platform.launch.slurm.queued import LIVING, SlurmJob
from cupola_platform.unshared.contract import folder_on_nodes
from cupola_platform.unshared.files import LOG

SCRIPT = "slurm.sh"


class SlurmLauncher:
    """Starts jobs with sbatch."""

    def __init__(self, name: str, cluster: SlurmCluster, module: str = "cupola_trainer") -> None:
        self.name, self.cluster, self.module = name, cluster, module

    def check(self, processes: int) -> None:
        """Refuse a job that the cluster has no room for, or a machine without Slurm's commands. Raises ConfigError."""
        self.cluster.spread(processes, self.name)
        self._has_slurm()
        if self.cluster.partition:
            with suppress(ServiceError):  # a controller that is away now may be back when the job starts
                commands.nodes_of(self.cluster.partition, self.name)

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
        nodes, _ = self.cluster.spread(processes, self.name)
        name = name_of(folder, log)
        script = self._script(folder, name, terms, nodes, log, env or {})
        terms.write(folder / TERMS)
        (folder / SCRIPT).write_text(script)
        # First the name: a job that was submitted is found again, whatever happens to this process.
        Handle(cluster=self.name, id=name).write(folder)
        try:
            number = self._submit(folder, name)
        except BaseException:
            with suppress(CupolaError):  # if Slurm does not answer, the next command finds what it may have
                commands.command(["scancel", f"--name={name}"])
                for left in (handle.FILE, SCRIPT, TERMS):
                    (folder / left).unlink(missing_ok=True)
            raise
        Handle(cluster=self.name, id=number).write(folder)
        return self._job(number, folder)

    def attach(self, job_file: Path) -> SlurmJob | None:
        """The job that an earlier command submitted for this file, if Slurm still has it in its queue."""
        known = handle.read(job_file.parent)
        if known is None or known.cluster != self.name:
            return None
        self._has_slurm()
        number = known.id if known.id.isdecimal() else commands.number_of(known.id, self.name)
        if number is None or commands.ask(number).get("JobState") not in LIVING:
            return None
        return self._job(number, job_file.parent)

    def capacity(self) -> Capacity:
        """The nodes and the queue of the partition that jobs go to.

        Raises:
            ServiceError: the controller does not answer.
            ConfigError: this machine has no Slurm, or Slurm no such partition.
        """
        self._has_slurm()
        partitions, states = commands.nodes_of(self.cluster.partition or "", self.name)
        queue = ["squeue", "--all", "--noheader", "--array", "--states=PENDING", "--format=%i"]
        waiting = commands.answer([*queue, f"--partition={','.join(partitions)}"], self.name).split()
        down = {name: state for name, (state, _) in states.items() if not commands.takes_jobs(state)}
        return Capacity(
            nodes=len(states) - len(down),
            free=sum(state.rstrip("~#") == "idle" for state, _ in states.values()),
            waiting=len(waiting),
            down={name: commands.in_words(state, states[name][1]) for name, state in down.items()},
        )

    def _has_slurm(self) -> None:
        if shutil.which("sbatch") is None:
            raise ConfigError(
                f"Cluster {self.name} is Slurm's, and sbatch is not on PATH. Run this on a login node, or install "
                "Slurm's client."
            )

    def _submit(self, folder: Path, name: str) -> str:
        """Submit the script in a job's folder. Returns the job's number."""
        commands.command(["scancel", f"--name={name}"], tolerant=True)  # of a start whose end was not seen
        printed = commands.command(["sbatch", "--parsable", str(folder / SCRIPT)], cluster=self.name)
        number = (printed.strip().splitlines() or [""])[-1].partition(";")[0]
        if not number.isdecimal():
            raise ConfigError(
                f"Cluster {self.name}: sbatch answered {number[:80]!r}, which is no job's number. Put Slurm's own "
                "sbatch on PATH."
            )
        return number

    def _job(self, number: str, folder: Path) -> SlurmJob:
        return SlurmJob(self.name, number, folder, shared=self.cluster.shared)

    def _script(self, folder: Path, name: str, terms: Terms, nodes: int, log: Path, env: Mapping[str, str]) -> str:
        cluster = self.cluster
        there = folder_on_nodes(env)
        options: dict[str, str | None] = {
            "job-name": name,
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
        lines.append(f"exec {python} -m cupola_platform.launch.slurm.batch {at}")
        return "\n".join(lines) + "\n"


def name_of(folder: Path, log: Path) -> str:
    """What a job of this folder is called in Slurm: every start of it the same, and no other job. People see it too."""
    stage = re.sub(r"[^a-z0-9]+", "-", log.stem.lower())[:40].strip("-")
    return f"cupola-{stage}-{blake3(str(folder).encode()).hexdigest()[:12]}"


def _quoted(path: str) -> str:
    """A path for an #SBATCH line, whose quotes are sbatch's own and have no escapes."""
    if any(each in path for each in '"\\\n'):
        raise ConfigError(
            f"Slurm cannot write a log to {path!r}. Use a path without quotes, backslashes and line ends."
        )
    return f'"{path}"'
