"""A SQLite registry that cannot be written: on a read-only disk, or owned by somebody else."""

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
    """The database's file, if it is there and neither it nor its folder's files can be written."""
    if not url.startswith("sqlite"):
        return None
    database = Path(make_url(url).database or "")
    if not database.is_file() or (os.access(database, os.W_OK) and os.access(database.parent, os.W_OK)):
        return None
    return database


def open_reader(database: Path) -> Engine:
    """An engine that reads, and connects anew for every transaction: a writer may come meanwhile."""
    return create_engine("sqlite://", creator=partial(_connect, database), poolclass=NullPool)


def _connect(database: Path) -> sqlite3.Connection:
    """Without a write-ahead log the file is all there is; with one, SQLite reads both where it may, else copies of
    both."""
    place = f"file:{quote(str(database))}?mode=ro"
    if not Path(f"{database}-wal").exists():
        return sqlite3.connect(f"{place}&immutable=1", uri=True)
    try:
        connection = sqlite3.connect(place, uri=True)
        connection.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.OperationalError:  # nobody has it open, and the log's index cannot be made beside it
        with tempfile.TemporaryDirectory() as folder:
            for ending in ("", "-wal"):
                shutil.copyfile(f"{database}{ending}", f"{folder}/registry.db{ending}")
            connection = sqlite3.connect(f"{folder}/registry.db")
            connection.execute("SELECT count(*) FROM sqlite_master")  # opens every file that it needs
    return connection
