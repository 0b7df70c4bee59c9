"""A job on Slurm, as any process that knows its number sees it: how it is, why it waits or ended."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cupola_platform.errors import ConfigError, ServiceError
from cupola_platform.launch.handle import CANCELLED, STOP
from cupola_platform.launch.local import GRACE_SECONDS
from cupola_platform.launch.polled import PolledJob
from cupola_platform.launch.slurm import commands
from cupola_platform.launch.slurm.batch import EXIT_STATUS, TERMS, Terms, choose

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
        known = commands.ask(self.number)
        if not known and not self._ended():
            return "Slurm no longer knows it, and it left no exit status"
        if known.get("Reason") == "JobLaunchFailure":
            return f"node {known.get('BatchHost')} could not start it: it must see {self.folder} and the job's log"
        return IN_WORDS.get(known.get("JobState", ""))

    def poll(self) -> int | None:
        """Exit status of the job once it has left the queue, else None."""
        if self._status is None and time.monotonic() - self._asked >= commands.ASK_EVERY:
            self._asked = time.monotonic()
            answer = commands.ask(self.number)
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
        if commands.ask(self.number).get("JobState") == "PENDING":
            grace_seconds = 0.0
        else:
            commands.command(["scancel", "--signal=TERM", self.number], tolerant=True)
        if self.wait(grace_seconds) is None:
            commands.command(["scancel", self.number], tolerant=True)
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
            up = commands.up(commands.nodes_of(answer.get("Partition", ""))[1])
        except ServiceError:  # asked again at the next look
            return
        wanted = int(answer.get("NumNodes", "1").partition("-")[0])
        chosen = choose(terms.jobs, terms.per_node, up)
        if chosen and up < wanted:
            nodes = f"NumNodes={chosen[2]}", f"NumTasks={chosen[2]}"  # a task for each node: else Slurm keeps the nodes
            commands.command(["scontrol", "update", f"JobId={self.number}", *nodes], tolerant=True)

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
