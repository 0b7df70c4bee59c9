"""Fixtures of all tests: settings, workspaces and tracking servers of the user are hidden, and one real S3 server is
shared."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from playwright.sync_api import Playwright, sync_playwright
from scripts import local_slurm

ACCESS_KEY, SECRET_KEY = "cupola-tests", "cupola-tests-secret"
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # more threads spin waiting for each other when the cores are busy
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "STREAMLIT_BROWSER_GATHER_USAGE_STATS": "false",
}


os.environ.update(ENVIRONMENT)  # before a test module imports torch


@pytest.fixture(autouse=True, scope="session")
def _isolated_environment() -> None:
    for name in [name for name in os.environ if name.startswith(("CUPOLA_", "MLFLOW_", "PREFECT_API_"))]:
        del os.environ[name]


@pytest.fixture(scope="session")
def changed_files() -> Callable[[Path, Path], list[str]]:
    """The files that differ between an artifact made with an interruption and one made without. Empty if the digests
    are equal."""
    return _changed_files


def _changed_files(artifact: Path, twin: Path) -> list[str]:
    from cupola_platform import artifacts

    ours, theirs = (artifacts.verify(folder).manifest for folder in (artifact, twin))
    files = {(file.path, file.blake3) for file in ours.files} ^ {(file.path, file.blake3) for file in theirs.files}
    assert bool(files) == (ours.digest != theirs.digest)
    return sorted({path for path, _ in files})


RECORDER = """
import os, time
from cupola_platform import durable

log = os.open(os.environ["CUPOLA_TEST_SYNCED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
fsync, sync_file_system = os.fsync, durable.sync_file_system

def recorded_fsync(file):
    fsync(file)
    now = os.fstat(file)
    os.write(log, f"{now.st_dev} {now.st_ino} {now.st_mtime_ns} {now.st_size}\\n".encode())

def recorded_sync(folder):
    began = time.time_ns()
    sync_file_system(folder)
    os.write(log, f"all {began}\\n".encode())

os.fsync, durable.sync_file_system = recorded_fsync, recorded_sync
"""
"""A sitecustomize.py that records what a process has synced."""


@dataclass(frozen=True)
class PowerCut:
    """What a power failure does to files: names survive (file systems keep a journal of them), but bytes that were not
    synced are gone, or zeros.
    Affects files written by processes that were started with `environment`."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(self.folder), os.environ.get("PYTHONPATH", "")])
        return {**os.environ, "PYTHONPATH": path, "CUPOLA_TEST_SYNCED": str(self.folder / "synced")}

    def strike(self, *folders: Path) -> list[Path]:
        """Alternately empty the files that were not synced and fill them with zeros; returns the damaged ones."""
        lines = [line.split() for line in (self.folder / "synced").read_text().splitlines()]
        synced = {tuple(map(int, line)) for line in lines if len(line) == 4}
        everything = max((int(line[1]) for line in lines if line[0] == "all"), default=0)
        lost: list[Path] = []
        for path in sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()):
            now = path.stat()
            known = (now.st_dev, now.st_ino, now.st_mtime_ns, now.st_size) in synced
            if now.st_size and not known and now.st_mtime_ns > everything:
                path.write_bytes(bytes(now.st_size if len(lost) % 2 else 0))
                lost.append(path)
        return lost


@pytest.fixture
def power_cut(tmp_path: Path) -> PowerCut:
    """A simulated power failure."""
    folder = tmp_path / "power_cut"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(RECORDER)
    return PowerCut(folder)


@pytest.fixture(scope="session")
def result_folder() -> Callable[[Path], Path]:
    """The folder that a job's stage publishes, within the job's folder."""
    return lambda output: output / json.loads((output / "result.json").read_bytes())["folder"]


@pytest.fixture(scope="session")
def free_ports() -> Callable[[int], list[int]]:
    """A function that returns the given number of free ports."""
    return local_slurm.free_ports


@dataclass(frozen=True)
class S3:
    """A running S3 server with one bucket."""

    endpoint_url: str
    bucket: str
    client: Any


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    folder = Path(tempfile.mkdtemp(prefix="cupola-s3-"))
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
             "s3.port", "s3.port.grpc")  # fmt: skip
    ports = dict(zip(names, local_slurm.free_ports(len(names)), strict=True))
    options = [f"-{name}={port}" for name, port in ports.items()]
    weed = Path(sys.executable).with_name("weed")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-filer", "-s3", f"-s3.config={folder / 's3.json'}",
             "-master.volumeSizeLimitMB=64", "-volume.max=50", "-master.telemetry=false", "-s3.autoCreateBucket=false",
             "-s3.port.iceberg=0", "-s3.port.lance=0", *options],
            stdout=log, stderr=subprocess.STDOUT, cwd=folder,
        )  # fmt: skip
    try:
        server = S3(f"http://127.0.0.1:{ports['s3.port']}", "cupola", _s3_client(ports["s3.port"]))
        _wait_for_s3(server, process, folder / "log")
        yield server
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


def _s3_client(port: int) -> Any:
    return boto3.client(
        "s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1", aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )  # fmt: skip


def _wait_for_s3(server: S3, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for a real write and read, because the server responds before it can store."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            server.client.create_bucket(Bucket=server.bucket)
            server.client.put_object(Bucket=server.bucket, Key="ready", Body=b"yes")
            if server.client.get_object(Bucket=server.bucket, Key="ready")["Body"].read() == b"yes":
                return
        except (BotoCoreError, ClientError):
            time.sleep(0.3)
    raise RuntimeError(f"SeaweedFS did not start:\n{log.read_text()[-2000:]}")


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The S3 server, with credentials for it in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return s3_server


@pytest.fixture
def with_clock_set(tmp_path: Path) -> Callable[[list[str], int], list[str]]:
    """A function that makes a command run as if the clock had been set forward by some seconds.

    The kernel then reports a later boot time. Here a mount private to the command reports it, and no clock is set.
    """
    rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    alone = ["unshare", *rights, "--mount"]
    if subprocess.run([*alone, "true"], check=False, capture_output=True).returncode:
        pytest.skip("This machine gives no mount namespaces.")

    def stepped(command: list[str], seconds: int) -> list[str]:
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
        moved = [
            [name, str(int(first) + seconds)] if name == "btime" else [name, first, *rest]
            for name, first, *rest in lines
        ]
        stat = tmp_path / f"stat{seconds}"
        stat.write_text("".join(" ".join(line) + "\n" for line in moved))
        return [*alone, "sh", "-c", 'mount --bind "$0" /proc/stat && exec "$@"', str(stat), *command]

    return stepped


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    """Playwright, started once, because a process cannot have two."""
    with sync_playwright() as started:
        yield started
