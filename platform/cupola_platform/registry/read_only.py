"""A SQLite registry that cannot be written: on a read-only disk, or owned by another user."""

import os
import shutil
import sqlite3
import tempfile
from functools import partial
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.pool import NullPool


def read_only_file(url: str) -> Path | None:
    """The database file if it exists and it or its folder is not writable, else None."""
    if not url.startswith("sqlite"):
        return None
    database = Path(make_url(url).database or "")
    if not database.is_file() or (os.access(database, os.W_OK) and os.access(database.parent, os.W_OK)):
        return None
    return database


def open_reader(database: Path) -> Engine:
    """A read-only engine that reconnects for every transaction, because a writer may appear in between."""
    return create_engine("sqlite://", creator=partial(_connect, database), poolclass=NullPool)


def _connect(database: Path) -> sqlite3.Connection:
    """Without a write-ahead log, read the file alone. With one, read both if SQLite may, else copies of both."""
    place = f"file:{quote(str(database))}?mode=ro"
    if not Path(f"{database}-wal").exists():
        return sqlite3.connect(f"{place}&immutable=1", uri=True)
    try:
        connection = sqlite3.connect(place, uri=True)
        connection.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.OperationalError:  # nobody has it open, and the log's index cannot be created
        with tempfile.TemporaryDirectory() as folder:
            for ending in ("", "-wal"):
                shutil.copyfile(f"{database}{ending}", f"{folder}/registry.db{ending}")
            connection = sqlite3.connect(f"{folder}/registry.db")
            connection.execute("SELECT count(*) FROM sqlite_master")  # opens every file it needs
    return connection
