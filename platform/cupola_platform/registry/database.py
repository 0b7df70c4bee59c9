"""Connections to the registry's database, and its migrations."""

import fcntl
import functools
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.exc import SQLAlchemyError

from cupola_platform.errors import RegistryError
from cupola_platform.registry.read_only import open_reader, read_only_file

HEAD = "s0001"
"""The newest migration. A registry at it is opened without loading Alembic."""
_OF_0_1 = ("r0001", "r0002", "r0003")

PATIENCE = 60.0
"""Seconds for which a PostgreSQL that does not answer is asked again: it is being restarted, or the network is."""
RETRY_EVERY = 1.0
CONNECT_TIMEOUT = 10
"""Seconds that a connection may take."""

_ONE_WRITER = "SELECT pg_advisory_xact_lock(109356048673889)"
_WRITES = "cupola_writes"
_NO_ANSWER = re.compile(
    "connection refused|timeout|timed out|unreachable|no route|closed the connection|connection is "
    "(closed|lost)|connection reset"
    "|starting up|shutting down|not yet accepting|terminating connection",
    re.IGNORECASE,
)
"""What PostgreSQL and its driver say when there is no server to refuse anything. A wrong password or name is not among
it."""

log = logging.getLogger(__name__)
Given = ParamSpec("Given")
Result = TypeVar("Result")


class AwayError(RegistryError):
    """The registry's server does not answer, or went away in the middle of a transaction."""


class Patient(Protocol):
    """What has methods that wait for a server."""

    patience: float


Owner = TypeVar("Owner", bound=Patient)


def patient(method: Callable[Concatenate[Owner, Given], Result]) -> Callable[Concatenate[Owner, Given], Result]:
    """Call a method that is one transaction again while the server is away, for `self.patience` seconds."""

    @functools.wraps(method)
    def until_it_answers(self: Owner, /, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        return patiently(lambda: method(self, *args, **kwargs), self.patience)

    return until_it_answers


def patiently(act: Callable[[], Result], patience: float) -> Result:
    """What `act` gives, once the server answers. Raises AwayError when it has not for `patience` seconds."""
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
    """An engine whose schema is migrated to `HEAD`. Several processes may open a new registry at once.

    Raises:
        RegistryError: the database cannot be reached, refuses, or was made by another version of Cupola.
    """
    with refusals(url):
        if database := read_only_file(url):
            engine = open_reader(database)
            _configure_sqlite(engine)
            if _revision(engine) != HEAD:
                raise RegistryError(
                    f"The registry {database} cannot be written, and another version of Cupola made it. Open it once "
                    "where it can."
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
    except ValueError:  # whose text has a part of the URL, the password's perhaps
        raise RegistryError(f"registry_url={url} is no address: a port is a number.") from None


def alembic_config(connection: Connection) -> Any:
    """Alembic's configuration for one connection, as the tests and `alembic revision --autogenerate` need it."""
    from alembic.config import Config  # a quarter of a second that an up-to-date registry need not spend

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def writing(engine: Engine) -> Engine:
    """The engine for transactions that write: one at a time on either database, so that none fails halfway.

    They are a few short ones a stage; SQLite knows nothing else, and PostgreSQL is told by an advisory lock.
    """
    return engine.execution_options(**{_WRITES: True})


@contextmanager
def refusals(url: str) -> Iterator[None]:
    """Turn a database's errors into one line."""
    try:
        yield
    except (SQLAlchemyError, OSError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        away = getattr(error, "connection_invalidated", False) or _NO_ANSWER.search(reason)
        raise (AwayError if away and not url.startswith("sqlite") else RegistryError)(
            f"The registry {url} refused: {reason}. Check registry_url and that its server runs."
        ) from error


def _configure_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin below, not when Python's driver thinks fit
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
    """One connection, alone: SQLite needs a lock file, because its journal mode changes outside of transactions."""
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
            "The registry was made by a newer Cupola. Install that version, or name another registry_url."
        ) from None
