"""The compose file's servers, started with its own commands on this machine, without a container engine."""

import base64
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import boto3
import psutil
import psycopg
import pytest
import yaml

DOCKER = Path(__file__).parents[2] / "infra" / "docker"
BIN = Path(sys.executable).parent
SECRETS = {
    "POSTGRES_PASSWORD": "of-the-database",
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "of-the-store",
    "PREFECT_PASSWORD": "of-prefect",
    "MLFLOW_PASSWORD": "of-mlflow",
    "CUPOLA_CONSOLE_PASSWORD": "of-the-console",
}
PATIENCE = 240
pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    """The local port of each server, by its port in the compose file."""
    return {port: free_port() for port in ("5432", "8333", "4200", "5000")}


@pytest.fixture(scope="module")
def services(ports: dict[str, int]) -> dict[str, Any]:
    """The services, with secrets filled in and all addresses changed to free local ports."""
    text = re.sub(r"\$\{(\w+):\?[^}]*\}", lambda name: SECRETS[name[1]], (DOCKER / "compose.yaml").read_text())
    for port, here in ports.items():
        text = re.sub(rf"(database|objects|127\.0\.0\.1):{port}\b", f"127.0.0.1:{here}", text)
        text = text.replace(f"port={port}", f"port={here}").replace(f'--port, "{port}"', f'--port, "{here}"')
    parsed: dict[str, Any] = yaml.safe_load(text.replace("0.0.0.0", "127.0.0.1"))
    return {**parsed["services"], "s3.json": parsed["configs"]["s3"]["content"]}


@contextmanager
def running(command: list[str], folder: Path, environment: Mapping[str, str] = {}) -> Iterator[None]:
    """A server in its own process, which is ended with its children."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env={**os.environ, **environment}, stdout=log, stderr=log)
    try:
        yield
    finally:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for each in family:
            with suppress(psutil.NoSuchProcess):  # it ended with the previous one
                each.kill()
        process.wait()


def basic(password: str) -> dict[str, str]:
    """The sign-in header of clients of the compose file's servers."""
    return {"Authorization": "Basic " + base64.b64encode(f"cupola:{password}".encode()).decode()}


def status(url: str, **headers: str) -> int:
    """The status of a GET; 0 while nothing responds."""
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def wait_for(ready: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < until
        time.sleep(0.5)


@pytest.fixture(scope="module")
def database(services: dict[str, Any], ports: dict[str, int]) -> Iterator[str]:
    """PostgreSQL with the compose file's initdb options, user, password and databases."""
    folder = Path(tempfile.mkdtemp(prefix="cupola-postgresql-"))
    (folder / "password").write_text(services["database"]["environment"]["POSTGRES_PASSWORD"])
    as_postgres: list[str] = []
    if os.getuid() == 0:  # PostgreSQL refuses root
        as_postgres = ["runuser", "-u", "postgres", "--"]
        for path in (folder, folder / "password"):
            shutil.chown(path, "postgres")
    binaries = max(Path("/usr/lib/postgresql").glob("*/bin"))
    options = services["database"]["environment"]["POSTGRES_INITDB_ARGS"].split()
    initdb = [str(binaries / "initdb"), "-D", "data", "-U", "cupola", "--pwfile=password", "--no-sync", *options]
    subprocess.run([*as_postgres, *initdb], cwd=folder, check=True, capture_output=True)
    listen = [
        "-p",
        str(ports["5432"]),
        "-c",
        "listen_addresses=127.0.0.1",
        "-c",
        "fsync=off",
        "-c",
        f"unix_socket_directories={folder}",
    ]
    url = f"postgresql://cupola:{SECRETS['POSTGRES_PASSWORD']}@127.0.0.1:{ports['5432']}"
    try:
        with running([*as_postgres, str(binaries / "postgres"), "-D", str(folder / "data"), *listen], folder):
            wait_for(lambda: _connects(url))
            with psycopg.connect(f"{url}/postgres", autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {services['database']['environment']['POSTGRES_DB']}")
                for statement in re.findall(r"^CREATE [^;]+", (DOCKER / "databases.sql").read_text(), re.MULTILINE):
                    connection.execute(statement)
            yield url
    finally:
        shutil.rmtree(folder)


def _connects(url: str) -> bool:
    try:
        psycopg.connect(f"{url}/postgres").close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.fixture(scope="module")
def servers(
    services: dict[str, Any], ports: dict[str, int], database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """The addresses of S3, Prefect and MLflow, started with the compose file's commands."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("objects", "prefect", "mlflow")}
    (folders["objects"] / "s3.json").write_text(services["s3.json"])
    moved = {
        "-dir=/data": f"-dir={folders['objects']}",
        "-ip=objects": "-ip=127.0.0.1",
        "-s3.config=/etc/seaweedfs/s3.json": f"-s3.config={folders['objects'] / 's3.json'}",
    }
    other_ports = [f"-{name}.port={free_port()}" for name in ("master", "volume", "filer")]
    other_ports += [f"-{name}.port.grpc={free_port()}" for name in ("master", "volume", "filer", "s3")]
    commands = {
        "objects": ["weed", *(moved.get(word, word) for word in services["objects"]["command"]), *other_ports],
        "prefect": services["prefect"]["command"],
        "mlflow": services["mlflow"]["command"],
    }
    urls = {
        "objects": f"http://127.0.0.1:{ports['8333']}",
        "prefect": f"http://127.0.0.1:{ports['4200']}",
        "mlflow": f"http://127.0.0.1:{ports['5000']}",
    }
    with ExitStack() as stack:
        for name, (program, *words) in commands.items():
            environment = services[name].get("environment", {}) | {"PREFECT_HOME": str(folders["prefect"])}
            stack.enter_context(running([str(BIN / program), *words], folders[name], environment))
        for name in urls:
            check = next(re.finditer(r"http://127\.0\.0\.1:\d+/[\w/]+", str(services[name]["healthcheck"]["test"])))
            wait_for(lambda url=check[0]: status(url) == 200)  # type: ignore[misc]
        yield urls


def test_each_server_passes_its_health_check_and_has_its_own_database(servers: dict[str, str], database: str) -> None:
    for name, table in {"prefect": "flow_run", "mlflow": "experiments"}.items():
        with psycopg.connect(f"{database}/{name}") as connection:
            found = connection.execute("SELECT count(*) FROM pg_tables WHERE tablename = %s", [table]).fetchone()
        assert found == (1,), name


def test_the_database_and_the_object_store_refuse_clients_without_the_secret(
    servers: dict[str, str], database: str
) -> None:
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(database.replace(SECRETS["POSTGRES_PASSWORD"], "wrong") + "/cupola")
    assert status(f"{servers['objects']}/mlflow") == 403


def test_mlflow_keeps_artifacts_in_s3_and_accepts_only_its_names(
    servers: dict[str, str], services: dict[str, Any]
) -> None:
    address = f"{servers['mlflow']}/api/2.0/mlflow-artifacts/artifacts/1/note.txt"
    signed_in = basic(SECRETS["MLFLOW_PASSWORD"])
    put = urllib.request.Request(address, data=b"kept", method="PUT", headers=signed_in)
    urllib.request.urlopen(put, timeout=60).close()
    store = boto3.client(
        "s3", endpoint_url=servers["objects"], region_name="us-east-1",
        aws_access_key_id=SECRETS["AWS_ACCESS_KEY_ID"], aws_secret_access_key=SECRETS["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip
    assert store.get_object(Bucket="mlflow", Key="1/note.txt")["Body"].read() == b"kept"
    page = f"{servers['mlflow']}/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert status(page, Host="mlflow:5000", **signed_in) == 200
    assert status(page, Host="elsewhere:5000", **signed_in) == 403


def test_prefect_and_mlflow_refuse_clients_without_the_credential(servers: dict[str, str]) -> None:
    for page, secret in (
        (f"{servers['prefect']}/api/admin/version", "PREFECT_PASSWORD"),
        (f"{servers['mlflow']}/api/2.0/mlflow/experiments/get?experiment_id=0", "MLFLOW_PASSWORD"),
    ):
        assert status(page) == 401
        assert status(page, **basic("guess")) == 401
        assert status(page, **basic(SECRETS[secret])) == 200
        assert status(page, Host="prefect.evil.test", **basic(SECRETS[secret])) == 403
