"""Jobs on a Slurm cluster: sbatch starts a torchrun agent on each node, and the job goes on whoever watches it."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from cupola_platform.clusters import Cluster
from cupola_platform.errors import ConfigError, StageFailedError
from cupola_platform.launch.local import GRACE_SECONDS

HANDLE = "handle.json"
"""In a job's folder: which job of which cluster works there."""
SCRIPT = "slurm.sh"
EXIT_STATUS = "slurm-exit"
"""In a job's folder, written by the batch script as its last act: Slurm forgets jobs after some minutes."""
POLL_EVERY = 2.0
"""Seconds between two questions to Slurm's controller about one job."""
PATIENCE = 300.0
"""Seconds for which a controller that does not answer is asked again."""
LIVING = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "RESIZING",
          "SIGNALING", "STAGE_OUT", "STOPPED", "PREEMPTED", "SPECIAL_EXIT", "REQUEUE_FED", "RESV_DEL_HOLD"}  # fmt: skip
IN_WORDS = {
    "CANCELLED": "it was cancelled",
    "TIMEOUT": "it reached its time limit",
    "NODE_FAIL": "a node failed",
    "OUT_OF_MEMORY": "it ran out of memory",
    "BOOT_FAIL": "a node did not boot",
    "DEADLINE": "it reached its deadline",
}


class SlurmJob:
    """A job that Slurm knows by its number."""

    outlives = True

    def __init__(self, cluster: str, number: str, folder: Path) -> None:
        self.cluster, self.number, self.folder = cluster, number, folder
        self._asked = float("-inf")
        self._status: int | None = None

    @property
    def name(self) -> str:
        """As a person would look for it."""
        return f"job {self.number} of cluster {self.cluster}"

    def reason(self) -> str | None:
        """Why Slurm ended the job, in words; None if it ended by itself or still runs."""
        return IN_WORDS.get(_state(self.number) or "")

    def poll(self) -> int | None:
        """Exit status of the job once it has left the queue, else None."""
        if self._status is None and time.monotonic() - self._asked >= POLL_EVERY:
            self._asked = time.monotonic()
            state = _state(self.number)
            if state not in LIVING:
                self._status = self._exit_status(state)
        return self._status

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait up to `timeout` seconds (None: until the job ends), then `poll`."""
        until = float("inf") if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None and time.monotonic() < until:
            time.sleep(min(0.5, max(0.0, until - time.monotonic())))
        return status

    def stop(self, grace_seconds: float = GRACE_SECONDS) -> int:
        """Ask the ranks to save and exit, then cancel what is left after `grace_seconds`. Returns the exit status."""
        if _state(self.number) == "PENDING":
            grace_seconds = 0.0
        else:
            _slurm(["scancel", "--signal=TERM", self.number])
        if self.wait(grace_seconds) is None:
            _slurm(["scancel", self.number])
        status = self.wait()
        assert status is not None
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.poll() is None:
            self.stop()

    def _exit_status(self, state: str | None) -> int:
        try:
            number, _, status = (self.folder / EXIT_STATUS).read_text().partition(" ")
        except FileNotFoundError:
            number, status = "", ""
        if number == self.number:
            return int(status)
        return 0 if state == "COMPLETED" else 1


class SlurmLauncher:
    """Starts jobs with sbatch. The job's folder is on a file system that all nodes share."""

    def __init__(self, name: str, cluster: Cluster, module: str = "cupola_trainer") -> None:
        self.name, self.cluster, self.module = name, cluster, module

    def check(self, processes: int) -> None:
        """Refuse a job that the cluster has no room for, or a machine without Slurm's commands. Raises ConfigError."""
        self.cluster.spread(processes, self.name)
        if shutil.which("sbatch") is None:
            raise ConfigError(
                f"Cluster {self.name} is Slurm's, and sbatch is not on PATH. Run this on a login node, or install "
                "Slurm's client."
            )

    def start(self, job_file: Path, *, processes: int, log: Path, env: Mapping[str, str] | None = None) -> SlurmJob:
        """Submit a job. Its output is appended to `log`; `handle.json` beside the job file names it.

        Raises:
            ConfigError: the cluster has no room for it, or Slurm refuses it.
        """
        self.check(processes)
        folder = job_file.parent
        log.parent.mkdir(parents=True, exist_ok=True)
        (folder / EXIT_STATUS).unlink(missing_ok=True)
        script = folder / SCRIPT
        script.write_text(self._script(job_file, processes, log, env or {}))
        number = _slurm(["sbatch", "--parsable", str(script)], cluster=self.name).strip().partition(";")[0]
        partial = folder / f".{HANDLE}"
        partial.write_text(json.dumps({"cluster": self.name, "launcher": "slurm", "id": number}))
        partial.replace(folder / HANDLE)
        return SlurmJob(self.name, number, folder)

    def attach(self, job_file: Path) -> SlurmJob | None:
        """The job that an earlier command submitted for this file, if Slurm still has it in its queue."""
        try:
            handle = json.loads((job_file.parent / HANDLE).read_text())
        except (FileNotFoundError, ValueError):
            return None
        if handle.get("cluster") != self.name or _state(handle["id"]) not in LIVING:
            return None
        return SlurmJob(self.name, handle["id"], job_file.parent)

    def _script(self, job_file: Path, processes: int, log: Path, env: Mapping[str, str]) -> str:
        cluster = self.cluster
        nodes, per_node = cluster.spread(processes, self.name)
        options = {
            "job-name": "cupola",
            "nodes": str(nodes),
            "ntasks": str(nodes),
            "ntasks-per-node": "1",
            "output": str(log).replace("%", "%%"),
            "open-mode": "append",
            "no-requeue": None,
            "partition": cluster.partition,
            "account": cluster.account,
            "time": cluster.time_limit,
            "gpus-per-node": str(cluster.gpus_per_node) if cluster.gpus_per_node else None,
            **cluster.sbatch,
        }
        lines = ["#!/bin/bash"]
        for name, value in options.items():
            if value is not None:
                lines.append(f"#SBATCH --{name}={value}")
            elif name == "no-requeue":
                lines.append("#SBATCH --no-requeue")
        variables = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", ""), **cluster.environment, **env}
        lines += [f"export {name}={shlex.quote(value)}" for name, value in variables.items() if value]
        lines += cluster.setup
        python = shlex.quote(str(cluster.python or sys.executable))
        node = [f"--nodes={nodes}", f"--ranks={per_node}", f"--interface={cluster.interface or ''}"]
        lines += [
            f"export CUPOLA_HEAD=$({python} -m cupola_platform.launch.node --address {shlex.quote(node[2])})",
            f"srun --kill-on-bad-exit=1 {python} -m cupola_platform.launch.node {shlex.join(node)} -- -m {self.module} "
            + shlex.quote(str(job_file)),
            "status=$?",
            f'echo "$SLURM_JOB_ID $status" > {shlex.quote(str(job_file.parent / EXIT_STATUS))}',
            "exit $status",
        ]
        return "\n".join(lines) + "\n"


def _state(number: str) -> str | None:
    """Slurm's word for a job's state; None for a job that it does not know. Asks again while no controller answers."""
    deadline = time.monotonic() + PATIENCE
    while True:
        done = subprocess.run(
            ["scontrol", "--oneliner", "show", "job", number], check=False, capture_output=True, text=True
        )
        if done.returncode == 0:
            words = dict(word.partition("=")[::2] for word in done.stdout.split() if "=" in word)
            return words.get("JobState")
        if "Invalid job id" in done.stderr:
            return None
        if time.monotonic() > deadline:
            raise StageFailedError(f"Slurm's controller does not answer: {_line(done.stderr)} The job goes on.")
        time.sleep(POLL_EVERY)


def _slurm(command: Sequence[str], cluster: str = "") -> str:
    """A command's output. Raises ConfigError with Slurm's own reason."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        where = f"Cluster {cluster}: " if cluster else ""
        raise ConfigError(f"{where}{command[0]} refused: {_line(done.stderr)}")
    return done.stdout


def _line(text: str) -> str:
    lines = [line.partition("error: ")[2] or line for line in text.strip().splitlines()]
    return f"{lines[-1]}." if lines else "no reason given."
