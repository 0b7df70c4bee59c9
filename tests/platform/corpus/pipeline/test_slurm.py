"""A preparation on a real one-node Slurm: munged, slurmctld and slurmd on this machine, in their own folder."""

import os
import secrets
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cupola_platform.clusters import SlurmCluster
from cupola_platform.corpus.config import ExecutorConfig, Files, PrepareConfig, TokenizerConfig
from cupola_platform.corpus.pipeline.preparation import prepare
from cupola_platform.errors import ConfigError, StageFailedError

CONFIG = """
ClusterName=cupola
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
KillWait=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
SENTENCE = (
    "This is page {} of the notes about the river, and about the {} people who live beside it in their {} houses. "
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, PROGRAMS)),
        reason="needs root and Slurm: apt-get install munge slurmctld slurmd slurm-client",
    ),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[int], list[int]]) -> Iterator[Path]:
    """The folder of a running cluster, which sbatch and squeue use."""
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool", "log"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o600)
    host = socket.gethostname().partition(".")[0]
    text = CONFIG.format(host=host, ports=free_ports(2), folder=folder, cores=os.cpu_count())
    (folder / "slurm.conf").write_text(text)
    munge = [
        f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("socket", "pid-file", "seed-file", "log-file")
    ]
    commands = [
        ["munged", "--foreground", "--force", f"--key-file={key}", *munge],
        ["slurmctld", "-D", "-c", "-f", f"{folder}/slurm.conf"],
        ["slurmd", "-D", "-f", f"{folder}/slurm.conf"],
    ]
    processes: list[subprocess.Popen[bytes]] = []
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = f"{folder}/slurm.conf"
    try:
        for command in commands:
            with (folder / "log" / command[0]).open("wb") as log:
                processes.append(subprocess.Popen(command, stdout=log, stderr=log))
            time.sleep(1)
        wait_until_idle(folder)
        yield folder
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(30)
        del os.environ["SLURM_CONF"]
        if before is not None:
            os.environ["SLURM_CONF"] = before


def wait_until_idle(folder: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        told = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, check=False).stdout
        if told.strip() == "idle":
            return
        time.sleep(0.5)
    raise AssertionError({path.name: path.read_text()[-2000:] for path in (folder / "log").iterdir()})


def jobs() -> list[str]:
    return subprocess.run(["squeue", "-h", "-o", "%j"], capture_output=True, text=True, check=True).stdout.split()


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(12):
        lines = (SENTENCE.format(number * 10 + line, line + 1, number + 2) for line in range(6))
        (folder / f"{number:02}.txt").write_text("\n".join(lines))
    return folder


def config(texts: Path, **executor: object) -> PrepareConfig:
    return PrepareConfig(
        sources={"a": Files(path=str(texts / "0*.txt")), "b": Files(path=str(texts / "1*.txt"))},
        quality=None,
        tokenizer=TokenizerConfig(vocab_size=320),
        executor=ExecutorConfig(**executor),  # type: ignore[arg-type]
    )


SLURM = {"workers": 2, "memory_gb": 1}
CLUSTER = SlurmCluster(launcher="slurm", ranks_per_node=2, partition="main", time_limit="00:05:00")


def test_slurm_writes_the_same_as_this_machine_and_leaves_no_job(
    slurm: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/usr/sbin:/bin")  # no activated environment
    prepare(config(texts, **SLURM), tmp_path / "slurm", cluster=CLUSTER)
    prepare(config(texts, workers=1), tmp_path / "local")
    written = files_of(tmp_path / "slurm")
    assert written == files_of(tmp_path / "local")
    assert len(written) >= 10
    assert jobs() == []


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_cancelled_jobs_are_reported_and_the_same_command_resumes(slurm: Path, texts: Path, tmp_path: Path) -> None:
    def cancel() -> None:
        while not (waiting := [name for name in jobs() if "exact" in name]):
            time.sleep(0.1)
        subprocess.run(["scancel", "--name", waiting[0]], check=True)

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with pytest.raises(StageFailedError, match=r"exact deduplication: 2 of 2 tasks failed\. Read .*logs\."):
        prepare(config(texts, **SLURM), tmp_path / "out", cluster=CLUSTER)
    canceller.join()
    report = prepare(config(texts, **SLURM), tmp_path / "out", cluster=CLUSTER)
    assert report.steps[0].documents_in == 12


def test_a_slurm_that_does_not_respond_is_one_line(
    slurm: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = tmp_path / "slurm.conf"
    away.write_text((slurm / "slurm.conf").read_text().replace("SlurmctldPort=", "SlurmctldPort=1\n# "))
    monkeypatch.setenv("SLURM_CONF", str(away))
    with pytest.raises(StageFailedError, match=r"^Slurm does not respond: .*controller.*\. Nothing was submitted\.$"):
        prepare(config(texts, **SLURM), tmp_path / "out", cluster=CLUSTER)


def test_a_refusal_by_sbatch_is_one_line(slurm: Path, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"sbatch refused cupola-read_and_clean-\w+ with exit status 1\. See .*/log\.txt, ",
    ):
        prepare(config(texts, **SLURM), tmp_path / "out", cluster=CLUSTER.but(partition="nowhere"))
