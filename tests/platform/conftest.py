"""Real servers for the platform's tests: PostgreSQL and an S3 server, started once."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from cupola_platform.workspace import Workspace

ACCESS_KEY, SECRET_KEY = "cupola-tests", "cupola-tests-secret"


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture
def free_port() -> Callable[[], int]:
    """A function that gives a port nobody listens on."""
    return lambda: free_ports(1)[0]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No `cupola.toml` of the working directory, and no workspace in it."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """A function that makes a folder of text files: `make_folder("name", {"a/b.txt": "text"})`."""

    def make(name: str, files: dict[str, str]) -> Path:
        folder = tmp_path / name
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        return folder

    return make


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "workspace")


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
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    options = [f"-{name}={port}" for name, port in ports.items()]
    weed = Path(sys.executable).with_name("weed")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-filer", "-s3", f"-s3.config={folder / 's3.json'}",
             "-master.volumeSizeLimitMB=64", "-volume.max=50", "-master.telemetry=false", "-s3.autoCreateBucket=false", "-s3.port.iceberg=0", "-s3.port.lance=0", *options],
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
        aws_secret_access_key=SECRET_KEY, config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )  # fmt: skip


def _wait_for_s3(server: S3, process: subprocess.Popen[bytes], log: Path) -> None:
    """It answers before it can store: only a real write and read tell."""
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


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """`host:port` of a PostgreSQL server, user postgres, no password."""
    binaries = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
    if binaries is None:
        pytest.fail("PostgreSQL is missing. `make test` installs it, or: scripts/install-debian-packages")
    folder = Path(tempfile.mkdtemp(prefix="cupola-pg-"))
    (port,) = free_ports(1)
    as_postgres: list[str | Path] = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if as_postgres:
        shutil.chown(folder, "postgres", "postgres")
    data = folder / "data"
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    control: list[str | Path] = [*as_postgres, binaries / "pg_ctl", "-D", data, "-w", "-l", folder / "log"]
    for command in (
        [*as_postgres, binaries / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--no-sync"],
        [*control, "-o", options, "start"],
    ):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, stdout=subprocess.DEVNULL, cwd=folder)
        shutil.rmtree(folder)


@pytest.fixture
def postgresql_url(postgresql_server: str, request: pytest.FixtureRequest) -> str:
    """SQLAlchemy URL of an empty PostgreSQL database of the test's own."""
    database = f"test_{time.time_ns()}"
    with psycopg.connect(f"postgresql://postgres@{postgresql_server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {database}".encode())
    return f"postgresql+psycopg://postgres@{postgresql_server}/{database}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new database of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registry.db'}"
    url: str = request.getfixturevalue("postgresql_url")
    return url
