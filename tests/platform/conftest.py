"""A real PostgreSQL for the platform's tests, started once; the S3 server is every test's."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from cupola_platform.workspace import Workspace


@pytest.fixture
def free_port(free_ports: Callable[[int], list[int]]) -> Callable[[], int]:
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


@pytest.fixture(scope="session")
def postgresql_server(free_ports: Callable[[int], list[int]]) -> Iterator[str]:
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
