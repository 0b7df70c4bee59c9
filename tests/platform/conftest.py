"""A real PostgreSQL server for the platform's tests, started once. The S3 server is in tests/conftest.py."""

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
    """A function that returns a free port."""
    return lambda: free_ports(1)[0]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory without `cupola.toml` and workspace."""
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


class PostgreSQL:
    """A real server with user postgres and no password, which can be stopped and restarted on the same port."""

    def __init__(self, port: int) -> None:
        binaries = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
        if binaries is None:
            pytest.fail("PostgreSQL is missing. `make test` installs it, or: scripts/install-debian-packages")
        self.address = f"127.0.0.1:{port}"
        self.folder = Path(tempfile.mkdtemp(prefix="cupola-pg-"))
        as_postgres: list[str | Path] = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        if as_postgres:
            shutil.chown(self.folder, "postgres", "postgres")
        data = self.folder / "data"
        self._options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder} -c fsync=off"
        self._control = [*as_postgres, binaries / "pg_ctl", "-D", data, "-w", "-l", self.folder / "log"]
        self._run(*as_postgres, binaries / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--no-sync")

    def start(self) -> None:
        self._run(*self._control, "-o", self._options, "start")

    def stop(self) -> None:
        """Stop immediately, even during a transaction."""
        self._run(*self._control, "-m", "immediate", "stop")

    def database(self) -> str:
        """SQLAlchemy URL of a new, empty database."""
        name = f"test_{time.time_ns()}"
        with psycopg.connect(f"postgresql://postgres@{self.address}/postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return f"postgresql+psycopg://postgres@{self.address}/{name}"

    def _run(self, *command: str | Path) -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self.folder)


@pytest.fixture(scope="session")
def postgresql_server(free_ports: Callable[[int], list[int]]) -> Iterator[PostgreSQL]:
    """A server shared by the tests that do not stop it."""
    yield from _postgresql(free_ports)


@pytest.fixture
def own_postgresql(free_ports: Callable[[int], list[int]]) -> Iterator[PostgreSQL]:
    """A server that the test may stop."""
    yield from _postgresql(free_ports)


def _postgresql(free_ports: Callable[[int], list[int]]) -> Iterator[PostgreSQL]:
    server = PostgreSQL(*free_ports(1))
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(server.folder)


@pytest.fixture
def postgresql_url(postgresql_server: PostgreSQL) -> str:
    """SQLAlchemy URL of an empty PostgreSQL database for one test."""
    return postgresql_server.database()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new database of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registry.db'}"
    url: str = request.getfixturevalue("postgresql_url")
    return url
