"""What a Slurm job runs on its first node: srun over its nodes, again after a lost node or a failed rank, and back into
the queue when the time limit is near or the job is preempted.

`python -m cupola_platform.launch.slurm.batch FOLDER/slurm.json`, by the script that `launcher` submits.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from cupola_platform.clusters import nodes_for
from cupola_platform.durable import write_text
from cupola_platform.launch import starts
from cupola_platform.launch.node import address_of, default_interface
from cupola_platform.launch.slurm.commands import known_of, lost
from cupola_platform.launch.unshared.batch import Exchange

TERMS = "slurm.json"
EXIT_STATUS = "slurm-exit.json"
"""In a job's folder, written as the last act: Slurm forgets jobs after some minutes."""
HISTORY = "slurm-starts.json"
"""In a job's folder: what earlier starts of the same Slurm job left for the next one."""
AHEAD = signal.SIGUSR1
"""Slurm sends it some time ahead of the time limit."""
PORTS = (20_000, 40_000)
"""Of the rendezvous, by the job's number: below what systems hand out to clients."""
LOOK_EVERY = 10.0
"""Seconds between two looks at the nodes and the log of a running job."""
TO_ANSWER = 60.0
"""Seconds for a node to run a step that does nothing."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How a job is to be run, as `launcher` writes it into the job's folder."""

    jobs: tuple[tuple[str, int], ...]
    """(job file, ranks), the preferred one first; the others are the same job in other layouts."""
    per_node: int
    """Most ranks of a node."""
    python: str
    module: str
    interface: str
    restarts: int
    """Starts after the first one that failures may cause."""

    @staticmethod
    def read(path: Path) -> "Terms":
        given = json.loads(path.read_text())
        return Terms(**{**given, "jobs": tuple((str(file), int(ranks)) for file, ranks in given["jobs"])})

    def text(self) -> str:
        return json.dumps(asdict(self), indent=1)

    def write(self, path: Path) -> None:
        write_text(path, self.text())


@dataclass(kw_only=True)
class History:
    """What happened to a Slurm job so far."""

    starts: int = 0
    """Starts of its ranks."""
    failures: int = 0
    """Starts that failed."""
    lost: int = 0
    """Starts in a row that Slurm itself ended, none of which left a new checkpoint."""
    newest: str = ""
    """The newest checkpoint at the last start."""
    requeued: bool = False
    """Whether the job itself, a person or Slurm sent it back into the queue, rather than a lost node."""


class Batch:
    """One start of a Slurm job."""

    def __init__(self, path: Path) -> None:
        self.folder = path.parent
        self.terms = Terms.read(path)
        self.job = os.environ["SLURM_JOB_ID"]
        self.exchange = Exchange.of_this_job()
        if self.exchange:
            self.exchange.bring()
        self.history = self._read_history()
        self.time_is_up = False
        signal.signal(AHEAD, self._save_ahead)
        signal.signal(signal.SIGTERM, self._note_requeue)

    def run(self) -> int:
        """Run the job until it ends or goes back into the queue. Returns its exit status."""
        self._count_losses()
        while self.history.failures <= self.terms.restarts and self.history.lost <= self.terms.restarts:
            nodes = usable(ask_them=self.history.failures > 0)
            chosen = choose(self.terms.jobs, self.terms.per_node, len(nodes))
            if chosen is None:
                self.history.failures += 1
                self._requeue(f"{len(nodes)} nodes are left, too few for any layout")
            file, ranks, count = chosen
            status = self._start(file, ranks, nodes[:count])
            if status == 0 or starts.is_done(self.folder):  # a rank may be ended while it exits
                return self._end(0)
            if starts.is_final(self.folder):
                return self._end(status)
            if self.time_is_up:
                self._requeue_in_time()
            if self._is_preempted():
                self._requeue("preempted")
            self._fail(f"start {self.history.starts} ended with status {status}")
        return self._end(1)

    def _start(self, file: str, ranks: int, nodes: Sequence[str]) -> int:
        self.history.starts += 1
        self.history.newest = self._newest()
        self._write_history()
        if self.exchange:
            self.exchange.clear()
        wrapper = [self.terms.python, "-m", "cupola_platform.launch.slurm.node"]
        node = [self.terms.python, "-m", "cupola_platform.launch.node", f"--interface={self.terms.interface}"]
        here = address_of(self.terms.interface or default_interface())  # the first node of the job runs this
        self._say(f"start {self.history.starts}: {ranks} ranks on {','.join(nodes)}")
        where = [f"--nodes={len(nodes)}", f"--ranks={ranks // len(nodes)}", f"--head={here}:{free_port(int(self.job))}"]
        which = [f"--id={self.job}.{self.history.starts}", "--node=SLURM_NODEID"]
        torchrun = [*node, *where, *which, "--", "-m", self.terms.module, file]
        step = subprocess.Popen([*_srun(nodes), "--kill-on-bad-exit=1", *wrapper, *torchrun])
        while not _ends(step, LOOK_EVERY):
            if gone := lost(nodes):  # long before ranks give up waiting for them
                self._say(f"lost {', '.join(gone)}")
                step.terminate()  # srun ends the step; `scancel --signal=KILL` would end the job
            if self.exchange:
                self.exchange.send_log()
        if self.exchange:
            self.exchange.bring()
        return step.returncode

    def _fail(self, what: str) -> None:
        """Count a failed start, and clear what it left that the next one would take for its own."""
        self.history.failures += 1
        what = starts.hang_of(self.folder) or what
        starts.clear(self.folder)
        self._say(f"failure {self.history.failures} of at most {self.terms.restarts}: {what}")
        if self.history.failures <= self.terms.restarts:
            starts.note(self.folder, attempt=self.history.failures, of=self.terms.restarts, reason=what)

    def _is_preempted(self) -> bool:
        """Whether Slurm asked the ranks to end because another job needs the nodes."""
        return known_of(self.job).get("PreemptTime", "None") != "None"

    def _save_ahead(self, *_: object) -> None:
        self.time_is_up = True
        subprocess.run(["scancel", "--signal=TERM", self.job], check=False)

    def _note_requeue(self, *_: object) -> None:
        """Slurm sends SIGTERM to this process if it ends the job, by a request or for another job; then SIGKILL."""
        self.history.requeued = True
        self._write_history()

    def _count_losses(self) -> None:
        """Count starts that Slurm ended without a word, such as by a lost first node."""
        if self.history.starts and not self.history.requeued:
            self.history.lost = 0 if self._newest() != self.history.newest else self.history.lost + 1
        self.history.requeued = False

    def _requeue_in_time(self) -> None:
        """Go on in a new allocation, unless this one and as many before were too short for a single checkpoint."""
        self.history.lost = 0 if self._newest() != self.history.newest else self.history.lost + 1
        if self.history.lost <= self.terms.restarts:
            self._requeue("the time is up")
        self._say("the time is up, and no checkpoint was saved in it: raise time_limit")

    def _newest(self) -> str:
        if self.exchange:
            return self.exchange.newest()
        return max((path.name for path in (self.folder / "checkpoints").glob("step_*")), default="")

    def _requeue(self, why: str) -> NoReturn:
        self._say(f"{why}: back into the queue")
        self.history.requeued = True
        self._write_history()
        done = subprocess.run(["scontrol", "requeue", self.job], check=False, capture_output=True, text=True)
        if done.returncode:
            self._say(f"Slurm refuses to requeue: {done.stderr.strip()}")
            sys.exit(self._end(1))
        time.sleep(300)  # Slurm ends this process
        sys.exit(1)

    def _end(self, status: int) -> int:
        write_text(self.folder / EXIT_STATUS, json.dumps({"job": self.job, "status": status}))
        self._send()
        return status

    def _say(self, line: str) -> None:
        print(f"cupola: {line}", flush=True)

    def _read_history(self) -> History:
        try:
            return History(**json.loads((self.folder / HISTORY).read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return History()

    def _write_history(self) -> None:
        write_text(self.folder / HISTORY, json.dumps(asdict(self.history)))
        self._send()

    def _send(self) -> None:
        if self.exchange:
            self.exchange.send()


def free_port(number: int) -> int:
    """A port of this machine that nothing listens on, from a place that depends on the job's number."""
    first, last = PORTS
    for offset in range(last - first):
        port = first + (number * 7 + offset) % (last - first)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port
    raise OSError(f"no port from {first} to {last} is free")


def choose(jobs: Sequence[tuple[str, int]], per_node: int, nodes: int) -> tuple[str, int, int] | None:
    """(job file, ranks, nodes) of the first job that `nodes` nodes have room for, on as few of them as possible."""
    for file, ranks in jobs:
        if count := nodes_for(ranks, per_node, nodes):
            return file, ranks, count
    return None


def usable(*, ask_them: bool) -> list[str]:
    """The nodes of this job that can run a step, in Slurm's order.

    Args:
        ask_them: run something on each, since Slurm notices a lost node late. It may not be one that just failed.
    """
    names = subprocess.run(
        ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]], check=True, capture_output=True, text=True
    ).stdout.split()
    gone = lost(names)
    names = [name for name in names if name not in gone]
    if not ask_them:
        return names
    asked = {name: subprocess.Popen([*_srun([name]), "true"]) for name in names}
    deadline = time.monotonic() + TO_ANSWER
    answered = [
        name for name, step in asked.items() if _ends(step, deadline - time.monotonic()) and not step.returncode
    ]
    for step in asked.values():
        step.kill()
    return answered


def _ends(step: "subprocess.Popen[bytes]", seconds: float) -> bool:
    """Whether a process ends within some seconds."""
    try:
        step.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        return False
    return True


def _srun(nodes: Sequence[str]) -> list[str]:
    return [
        "srun", f"--nodes={len(nodes)}", f"--ntasks={len(nodes)}", "--ntasks-per-node=1",
        f"--nodelist={','.join(nodes)}", "--cpu-bind=none", "--mem=0", "--overlap", "--no-kill",
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(Batch(Path(sys.argv[1])).run())
