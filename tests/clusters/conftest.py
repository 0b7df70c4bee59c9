"""A real Slurm cluster on this machine: one controller and several node daemons, each on a port of its own."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from tests.flows.conftest import cupola, eventually, recipe, texts, undisturbed

__all__ = ["cupola", "eventually", "recipe", "texts", "undisturbed"]

NODES = 4
NODE = "CUPOLA_TEST_NODE"
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

    def __init__(self, ports: list[int]) -> None:
        for command in ("munged", "slurmctld", "slurmd", "sbatch"):
            if not (shutil.which(command) or Path("/usr/sbin", command).exists()):
                pytest.fail(f"{command} is missing. `make test` installs it, or: scripts/install-debian-packages")
        self.folder = Path(tempfile.mkdtemp(prefix="cupola-slurm-"))
        self.folder.chmod(0o755)
        (self.folder / "state").mkdir()
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        nodes = "\n".join(
            f"NodeName=n{i} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=1000"
            for i, port in enumerate(ports[1:], start=1)
        )
        (self.folder / "slurm.conf").write_text(
            CONF.format(folder=self.folder, controller=ports[0], nodes=nodes, count=NODES, user="root")
        )
        self._start_munge()
        self._daemon("slurmctld", "-c")
        for i in range(1, NODES + 1):
            self.start_node(i)
        self.wait_for(lambda: self.ask("sinfo", "-h", "-o", "%T %D") == f"idle {NODES}", "idle nodes")

    def ask(self, *command: str) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, env={**os.environ, **self.environment}
        )
        return (done.stdout + done.stderr).strip()

    def start_node(self, number: int) -> None:
        self._daemon("slurmd", "-N", f"n{number}", node=f"n{number}")

    def kill_node(self, number: int) -> None:
        """Kill a node's daemon and everything that it started, as a machine that loses power does."""
        for process in self.processes(f"n{number}"):
            process.kill()

    def restart_controller(self) -> None:
        """Kill the controller outright, and start it again from its saved state."""
        controller = psutil.Process(int((self.folder / "slurmctld.pid").read_text()))
        controller.kill()
        controller.wait(10)
        self._daemon("slurmctld")

    def processes(self, node: str = "") -> list[psutil.Process]:
        """Every process of the cluster, or of one of its nodes: daemons, their steps and what these started."""
        ours = []
        for process in psutil.process_iter():
            try:
                variables = process.environ()
            except psutil.Error:
                continue
            at = {variables.get(NODE), variables.get("SLURMD_NODENAME")}
            if variables.get("SLURM_CONF") == self.environment["SLURM_CONF"] and (not node or node in at):
                ours.append(process)
        return ours

    @staticmethod
    def wait_for(true: Callable[[], bool], what: str, seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < until, f"{what}: not within {seconds:.0f} s"
            time.sleep(0.2)

    def close(self) -> None:
        munge = [psutil.Process(int(file.read_text())) for file in self.folder.glob("munge/*.pid")]
        for process in [*self.processes(), *munge]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

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

    def _daemon(self, *command: str, node: str = "") -> None:
        subprocess.run(
            [f"/usr/sbin/{command[0]}", *command[1:]], check=True, capture_output=True,
            env={**os.environ, **self.environment, NODE: node},
        )  # fmt: skip


@pytest.fixture(scope="session")
def slurm(free_ports: Callable[[int], list[int]]) -> Iterator[Slurm]:
    cluster = Slurm(free_ports(NODES + 1))
    yield cluster
    cluster.close()


@pytest.fixture
def on_slurm(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    """This process's Slurm commands go to the test's cluster."""
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    return slurm.environment
