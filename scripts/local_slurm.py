#!/usr/bin/env python
"""A real Slurm cluster on this machine: munge, one controller and several node daemons, each on a port of its own.

    scripts/local_slurm.py start --nodes 2 --folder /tmp/slurm     # prints what to export
    scripts/local_slurm.py stop --folder /tmp/slurm

To try a recipe over several nodes without having them, and for the tests. Needs root, and Debian's slurmctld, slurmd,
slurm-client and munge (scripts/install-debian-packages). Nobody but root of this machine can reach it: its munge key is
its own.
"""

import argparse
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

NODE = "CUPOLA_LOCAL_SLURM_NODE"
"""Environment variable of a node's daemon and its steps that names the node."""
CONF = """
ClusterName=test
SlurmctldHost=localhost
SlurmctldAddr=127.0.0.1
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmctldPort={controller}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MailProg=/bin/true
KillWait=5
SlurmdTimeout=10
InactiveLimit=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=main Nodes=n[1-{count}] Default=YES MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=n[1-{count}] PriorityTier=10 MaxTime=INFINITE State=UP
"""


class Slurm:
    """The cluster, and ways to break it."""

    def __init__(self, nodes: int, folder: Path | None = None) -> None:
        """
        Args:
            nodes: node daemons to start; each believes that it has two cores.
            folder: a new folder for the cluster's files; None for a temporary one.
        """
        for command in ("munged", "slurmctld", "slurmd", "sbatch"):
            if not (shutil.which(command) or Path("/usr/sbin", command).exists()):
                sys.exit(f"{command} is missing. Run scripts/install-debian-packages.")
        self.nodes = nodes
        self.mounts: dict[int, str] = {}
        self.folder = folder or Path(tempfile.mkdtemp(prefix="cupola-slurm-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        ports = free_ports(nodes + 1)
        self.folder.chmod(0o755)
        (self.folder / "state").mkdir()
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        lines = "\n".join(
            f"NodeName=n{i} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=8000"
            for i, port in enumerate(ports[1:], start=1)
        )
        (self.folder / "slurm.conf").write_text(
            CONF.format(folder=self.folder, controller=ports[0], nodes=lines, count=nodes, user="root")
        )
        self._start_munge()
        self._daemon("slurmctld", "-c")
        for i in range(1, nodes + 1):
            self.start_node(i)
        self.wait_for(lambda: self.ask("sinfo", "-h", "-o", "%T %D") == f"idle {self.nodes}", "idle nodes")

    def ask(self, *command: str) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, env={**os.environ, **self.environment}
        )
        return (done.stdout + done.stderr).strip()

    def start_node(self, number: int) -> None:
        self._daemon("slurmd", "-N", f"n{number}", node=f"n{number}", mounts=self.mounts.get(number, ""))

    def hide(self, path: Path, *numbers: int) -> None:
        """Give nodes an empty file system of their own at `path`, as machines without a shared folder have."""
        self.mounts = {number: f"mount -t tmpfs tmpfs {shlex.quote(str(path))}" for number in numbers}
        self._restart(*numbers)

    def show(self) -> None:
        """Let every node see this machine's files again."""
        numbers, self.mounts = tuple(self.mounts), {}
        self._restart(*numbers)

    def _restart(self, *numbers: int) -> None:
        for number in numbers:
            self.kill_node(number)
            self.start_node(number)
        self.wait_for(lambda: self.ask("sinfo", "-h", "-o", "%T %D") == f"idle {self.nodes}", "idle nodes")

    def kill_node(self, number: int) -> None:
        """Kill a node's daemon and everything that it started, as a machine that loses power does."""
        ours = self.processes(f"n{number}")
        for end in (psutil.Process.suspend, psutil.Process.kill):  # all at once: none may report another's end
            for process in ours:
                with suppress(psutil.NoSuchProcess):
                    end(process)

    def heal(self) -> None:
        """End all jobs, and bring lost and drained nodes back."""
        for job in self.ask("squeue", "--noheader", "--format=%i").split():
            self.ask("scancel", job)
        for number in range(1, self.nodes + 1):
            if not self.processes(f"n{number}"):
                self.start_node(number)
            self.ask("scontrol", "update", f"nodename=n{number}", "state=resume")
        self.wait_for(lambda: self.ask("sinfo", "-h", "-o", "%T %D") == f"idle {self.nodes}", "idle nodes", 120)

    def restart_controller(self) -> None:
        """Kill the controller outright, and start it again from its saved state."""
        controller = psutil.Process(int((self.folder / "slurmctld.pid").read_text()))
        controller.kill()
        controller.wait(10)
        self._daemon("slurmctld")

    def processes(self, node: str = "") -> list[psutil.Process]:
        """Every process of the cluster, or of one of its nodes: daemons, their steps and what these started."""
        return processes(self.folder, node)

    @staticmethod
    def wait_for(true: Callable[[], bool], what: str, seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < until, f"{what}: not within {seconds:.0f} s"
            time.sleep(0.2)

    def close(self) -> None:
        """End every process of the cluster, jobs included, and remove its folder."""
        end(self.folder)

    def _start_munge(self) -> None:
        home = self.folder / "munge"
        home.mkdir(mode=0o711)
        (home / "key").write_bytes(os.urandom(1024))
        (home / "key").chmod(0o400)
        as_munge: list[str] = []
        if os.geteuid() == 0:
            as_munge = ["runuser", "-u", "munge", "--"]
            for path in (home, home / "key"):
                shutil.chown(path, "munge", "munge")
        subprocess.run(
            [
                *as_munge, "/usr/sbin/munged", "--force", f"--key-file={home}/key", f"--socket={home}/socket",
                f"--pid-file={home}/munged.pid", f"--log-file={home}/log", f"--seed-file={home}/seed",
            ],
            check=True, capture_output=True,
        )  # fmt: skip

    def _daemon(self, *command: str, node: str = "", mounts: str = "") -> None:
        apart = ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh"] if mounts else []
        subprocess.run(
            [*apart, f"/usr/sbin/{command[0]}", *command[1:]], check=True, capture_output=True,
            env={**os.environ, **self.environment, NODE: node},
        )  # fmt: skip


def processes(folder: Path, node: str = "") -> list[psutil.Process]:
    """Every process of a cluster, or of one of its nodes."""
    ours = []
    for process in psutil.process_iter():
        try:  # not psutil's environ(), which stops at the gap that slurmstepd's title leaves
            variables = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        at = {f"{NODE}={node}".encode(), f"SLURMD_NODENAME={node}".encode()}
        if f"SLURM_CONF={folder / 'slurm.conf'}".encode() in variables and (not node or at.intersection(variables)):
            ours.append(process)
    return [process for process in ours if process.pid != os.getpid()]


def end(folder: Path) -> None:
    """End a cluster's processes, jobs included, and remove its folder."""
    for process in processes(folder):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    for file in folder.glob("munge/*.pid"):
        with suppress(psutil.NoSuchProcess):
            psutil.Process(int(file.read_text())).kill()
    shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="scripts/local_slurm.py", description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("start", "stop"))
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--folder", type=Path, required=True, help="Folder of the cluster's files.")
    given = parser.parse_args(arguments)
    if given.what == "start":
        if given.folder.exists() and any(given.folder.iterdir()):
            sys.exit(f"{given.folder} is not empty. Stop the cluster there and remove it, or name a new folder.")
        cluster = Slurm(given.nodes, given.folder.absolute())
        print(f"export SLURM_CONF={shlex.quote(cluster.environment['SLURM_CONF'])}")
    elif (given.folder / "slurm.conf").is_file():
        end(given.folder.absolute())
    else:
        sys.exit(f"{given.folder} holds no cluster.")


if __name__ == "__main__":
    main(sys.argv[1:])
