"""A training job on this machine listens only on loopback, and its ports do not allow code execution."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cupola_platform.launch.local import LocalJob, LocalLauncher
from cupola_trainer.config import (
    BatchConfig,
    CheckpointConfig,
    LayoutConfig,
    ModelConfig,
    NextTokenData,
    TrainJob,
    write_job,
)
from cupola_trainer.reporting.metrics import read_metrics


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory, tokens_folder: Path) -> Iterator[tuple[LocalJob, TrainJob]]:
    """Two ranks of a long training job."""
    job = TrainJob(
        output=tmp_path_factory.mktemp("job"),
        model=ModelConfig(
            vocab_size=320, hidden_size=32, num_layers=1, num_attention_heads=2, num_query_groups=2, ffn_hidden_size=64,
            max_position_embeddings=32,
        ),
        steps=100_000,
        layout=LayoutConfig(dp=2),
        batch=BatchConfig(sequence_length=32, micro_batch_size=1, global_batch_size=2),
        data=NextTokenData(tokens=tokens_folder),
        checkpoint=CheckpointConfig(every=0),
    )  # fmt: skip
    write_job(job, job.output / "job.json")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            patch.delenv(name, raising=False)
        started = LocalLauncher(max_processes=2).start(job.output / "job.json", processes=2, log=job.output / "log")
    with started as running:
        wait_for(running, job, step=1)
        yield running, job


def last_step(job: TrainJob) -> int:
    return max((line["step"] for line in read_metrics(job.output / "metrics.jsonl")), default=0)


def wait_for(running: LocalJob, job: TrainJob, step: int) -> None:
    until = time.monotonic() + 200
    while last_step(job) < step:
        assert running.poll() is None, (job.output / "log").read_text()[-3000:]
        assert time.monotonic() < until
        time.sleep(0.1)


def listening(running: LocalJob) -> list[tuple[str, int]]:
    """Every address and port that the job's processes listen on."""
    processes = psutil.Process(running.pid).children(recursive=True)
    assert len(processes) >= 3  # torchrun and two ranks
    return [
        (connection.laddr.ip, connection.laddr.port)
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN or connection.type == socket.SOCK_DGRAM
    ]


def test_every_socket_of_a_job_in_training_is_on_loopback(training: tuple[LocalJob, TrainJob]) -> None:
    found = listening(training[0])
    assert len(found) == 2  # gloo's, one per rank
    assert {address for address, _ in found} == {"127.0.0.1"}


STRANGER = """
import base64, os, pickle, socket, sys, threading, time
from datetime import timedelta
import torch.distributed as dist

class Payload:
    def __reduce__(self):
        return os.mkdir, (sys.argv[1],)

payload = pickle.dumps(Payload())

def attack(address, port):
    with socket.create_connection((address, port)) as stranger:
        stranger.sendall(payload)
    store = dist.TCPStore(address, port, is_master=False)  # blocks forever if no store replies
    for key in store.list_keys():
        store.set(key, base64.b64encode(payload).decode())

for place in sys.argv[2:]:
    address, _, port = place.rpartition(":")
    threading.Thread(target=attack, args=(address, int(port)), daemon=True).start()
time.sleep(4)
os._exit(0)
"""
"""Sends a pickle to each port directly, and, as a client of torch's store, replaces all its values with one."""


def test_data_sent_to_its_ports_is_never_executed(training: tuple[LocalJob, TrainJob], tmp_path: Path) -> None:
    running, job = training
    places = [f"{address}:{port}" for address, port in listening(running)]
    subprocess.run([sys.executable, "-c", STRANGER, str(tmp_path / "proof"), *places], check=True, timeout=120)
    assert not (tmp_path / "proof").exists()  # torchrun polls its store ten times a second
    wait_for(running, job, step=last_step(job) + 20)


def test_the_rendezvous_is_private_and_removed_afterwards(training: tuple[LocalJob, TrainJob]) -> None:
    [meeting] = {
        Path(process.environ()["CUPOLA_STORE"]).parent
        for process in psutil.Process(training[0].pid).children(recursive=True)
    }
    assert meeting.stat().st_mode & 0o777 == 0o700
    training[0].stop()
    assert not meeting.exists()
