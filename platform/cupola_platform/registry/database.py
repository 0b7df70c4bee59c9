"""Connections to the registry's database, and its migrations."""

import fcntl
import functools
import logging
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from cupola_platform.errors import RegistryError
from cupola_platform.registry.read_only import open_reader, read_only_file

HEAD = "s0003"
"""The newest migration. A registry at this revision opens without loading Alembic."""
_OF_0_1 = ("r0001", "r0002", "r0003")

PATIENCE = 60.0
"""Seconds to keep retrying when PostgreSQL does not respond, as during a restart or a network fault."""
RETRY_EVERY = 1.0
CONNECT_TIMEOUT = 10
"""Seconds to wait for a connection."""

_ONE_WRITER = "SELECT pg_advisory_xact_lock(109356048673889)"
_WRITES = "cupola_writes"
_NO_ANSWER = re.compile(
    "connection refused|timeout|timed out|unreachable|no route|closed the connection|connection is "
    "(closed|lost)|connection reset"
    "|starting up|shutting down|not yet accepting|terminating connection",
    re.IGNORECASE,
)
"""Messages of PostgreSQL and its driver that mean the server is away, unlike a wrong password or name."""

log = logging.getLogger(__name__)
Given = ParamSpec("Given")
Result = TypeVar("Result")


Transaction = Callable[[], AbstractContextManager[Session]]
"""Opens a transaction: of `Registry`, for the parts of it that have modules of their own."""


class AwayError(RegistryError):
    """The registry's server does not respond, or went away during a transaction."""


class Patient(Protocol):
    """An object whose methods wait for a server."""

    patience: float


Owner = TypeVar("Owner", bound=Patient)


def patient(method: Callable[Concatenate[Owner, Given], Result]) -> Callable[Concatenate[Owner, Given], Result]:
    """Retry a method, which must be one transaction, for up to `self.patience` seconds while the server is away."""

    @functools.wraps(method)
    def until_it_answers(self: Owner, /, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        return patiently(lambda: method(self, *args, **kwargs), self.patience)

    return until_it_answers


def patiently(act: Callable[[], Result], patience: float) -> Result:
    """The result of `act`, retried while the server is away. Raises AwayError after `patience` seconds."""
    deadline, announced = time.monotonic() + patience, False
    while True:
        try:
            return act()
        except AwayError as error:
            if time.monotonic() >= deadline:
                raise
            if not announced:
                log.warning("%s Trying again for %.0f s.", error, patience)
                announced = True
            time.sleep(min(RETRY_EVERY, patience))


def open_engine(url: str) -> Engine:
    """An engine with its schema migrated to `HEAD`. Several processes may open a new registry at once.

    Raises:
        RegistryError: the database cannot be reached, refuses, or comes from another version of Cupola.
    """
    with refusals(url):
        if database := read_only_file(url):
            engine = open_reader(database)
            _configure_sqlite(engine)
            if _revision(engine) != HEAD:
                raise RegistryError(
                    f"The registry {database} is read-only and comes from another version of Cupola. Open it once "
                    "where it can be written."
                )
            return engine
        engine = _engine(url)
        if engine.dialect.name == "sqlite":
            Path(engine.url.database or "").parent.mkdir(parents=True, exist_ok=True)
            _configure_sqlite(engine)
        else:
            _configure_postgresql(engine)
        revision = _revision(engine)
        if revision in _OF_0_1:
            raise RegistryError(
                f"The registry {url} belongs to Cupola 0.1, whose workspaces this version does not read. Nothing "
                "in it was changed. Name another --workspace, or another registry_url."
            )
        if revision != HEAD:
            with _migration_lock(engine) as connection:
                _upgrade(connection)
    return engine


def _engine(url: str) -> Engine:
    try:
        limits = {"connect_timeout": CONNECT_TIMEOUT} if url.startswith("postgresql") else {}
        return create_engine(url, pool_pre_ping=True, connect_args=limits)
    except ValueError:  # its text may contain part of the URL, even the password
        raise RegistryError(f"registry_url={url} is not a URL. Give the port as a number.") from None


def alembic_config(connection: Connection) -> Any:
    """Alembic's configuration for one connection, also for tests and `alembic revision --autogenerate`."""
    from alembic.config import Config  # takes 0.25 s, which an up-to-date registry saves

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def writing(engine: Engine) -> Engine:
    """The engine for writing transactions, which run one at a time on either database so that none fails halfway.

    A stage has a few short ones. SQLite has no other mode; PostgreSQL takes an advisory lock.
    """
    return engine.execution_options(**{_WRITES: True})


@contextmanager
def refusals(url: str) -> Iterator[None]:
    """Turn database errors into one line."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:  # sqlite3: of `_migration_lock`
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        away = getattr(error, "connection_invalidated", False) or _NO_ANSWER.search(reason)
        raise (AwayError if away and not url.startswith("sqlite") else RegistryError)(
            f"The registry {url} refused: {reason}. Check registry_url and that its server is running."
        ) from error


def _configure_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin below, not when Python's driver decides
        connection.execute("PRAGMA busy_timeout = 10000")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = NORMAL")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get(_WRITES) else "BEGIN")


def _configure_postgresql(engine: Engine) -> None:
    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        if connection.get_execution_options().get(_WRITES):
            connection.exec_driver_sql(_ONE_WRITER)


def _revision(engine: Engine) -> str | None:
    with engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
        return revision


@contextmanager
def _migration_lock(engine: Engine) -> Iterator[Connection]:
    """An exclusive connection. SQLite needs a lock file, because its journal mode is changed outside of
    transactions."""
    if engine.dialect.name != "sqlite":
        with writing(engine).begin() as connection:
            yield connection
        return
    with Path(f"{engine.url.database}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        raw = engine.raw_connection()
        raw.cursor().execute("PRAGMA journal_mode = WAL")
        raw.close()
        with writing(engine).begin() as connection:
            yield connection


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.util import CommandError

    try:
        command.upgrade(alembic_config(connection), "head")
    except CommandError:
        raise RegistryError(
            "The registry comes from a newer Cupola. Install that version, or set another registry_url."
        ) from None
