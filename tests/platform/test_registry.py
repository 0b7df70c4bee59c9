import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect

from cupola_platform.artifacts import Manifest
from cupola_platform.errors import ConfigError, NotFoundError, RegistryError
from cupola_platform.registry import Registry
from cupola_platform.registry.database import HEAD, alembic_config, open_engine

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def manifest(
    name: str, *, kind: str = "checkpoint", parents: tuple[str, ...] = (), minute: int = 0, fingerprint: str = ""
) -> Manifest:
    return Manifest(
        kind=kind, digest=digest(name), files=(), parents=tuple(digest(parent) for parent in parents), stage=name,
        recipe="tiny", fingerprint=fingerprint, config={"steps": 2}, metrics={"loss": 1.5}, code_version="c",
        environment={}, created=(NOON + timedelta(minutes=minute)).isoformat(),
    )  # fmt: skip


def digest(name: str) -> str:
    return name * (64 // len(name))


@pytest.fixture
def registry(database_url: str) -> Iterator[Registry]:
    with closing(Registry(database_url)) as opened:
        yield opened


def test_artifacts_come_back_as_they_went_in_newest_first(registry: Registry) -> None:
    run = registry.start_run("tiny", "b")
    registry.add_artifact(manifest("a", kind="tokens"))
    registry.add_artifact(manifest("b", parents=("a", "c"), minute=1), run)
    newest, oldest = registry.artifacts()
    assert (newest.digest, oldest.digest) == (digest("b"), digest("a"))
    assert newest.parents == (digest("a"), digest("c"))
    assert newest.metrics == {"loss": 1.5}
    assert newest.config == {"steps": 2}
    assert newest.created == NOON + timedelta(minutes=1)
    assert newest.run_id == run
    assert newest.id == "bbbbbbbbbbbb"
    assert [row.digest for row in registry.artifacts(kind="tokens")] == [digest("a")]
    assert [row.digest for row in registry.artifacts(limit=1)] == [digest("b")]


def test_edges_can_be_followed_both_ways(registry: Registry) -> None:
    for name, parents in (("a", ()), ("b", ("a",)), ("c", ("b", "a"))):
        registry.add_artifact(manifest(name, parents=parents))
    assert [row.stage for row in registry.parents(digest("c"))] == ["b", "a"]
    assert [row.stage for row in registry.children(digest("a"))] == ["b", "c"]


def test_several_fingerprints_may_have_one_content(registry: Registry) -> None:
    registry.add_artifact(manifest("a", fingerprint="1" * 64))
    registry.add_artifact(manifest("a", fingerprint="2" * 64))
    assert registry.made_by("1" * 64) == registry.made_by("2" * 64) == digest("a")
    assert registry.made_by("3" * 64) is None
    assert len(registry.artifacts()) == 1


def test_an_id_is_found_by_its_first_characters_without_wildcards(registry: Registry) -> None:
    registry.add_artifact(manifest("ab"))
    registry.add_artifact(manifest("ac"))
    assert [row.stage for row in registry.starting_with("a")] == ["ab", "ac"]
    assert [row.stage for row in registry.starting_with("ab")] == ["ab"]
    assert registry.starting_with("%") == []


def test_an_alias_moves_and_remembers_why(registry: Registry) -> None:
    registry.add_artifact(manifest("a"))
    registry.add_artifact(manifest("b"))
    registry.set_alias("champion", digest("a"), "first")
    registry.set_alias("champion", digest("b"), "better by 0.1")
    assert [(alias.name, alias.digest, alias.reason) for alias in registry.aliases()] == [
        ("champion", digest("b"), "better by 0.1")
    ]
    assert [(move.previous, move.digest) for move in registry.alias_history("champion")] == [
        (digest("a"), digest("b")),
        (None, digest("a")),
    ]
    with pytest.raises(NotFoundError, match="No artifact zzzzzzzzzzzz for the alias 'champion'"):
        registry.set_alias("champion", digest("z"), "")
    with pytest.raises(ConfigError, match="Alias 'Not Good'"):
        registry.set_alias("Not Good", digest("a"), "")


def test_a_run_records_its_progress(registry: Registry) -> None:
    whole = registry.start_run("tiny", config={"seed": 1})
    stage = registry.start_run("tiny", "pretrain", parent=whole)
    registry.update_run(stage, mlflow_run_id="m", work_folder=Path("/some/folder"), metrics={"loss": 3.0})
    registry.update_run(stage, prefect_flow_run_id="p")
    assert registry.run(stage).status == "running"
    registry.finish_run(stage, "completed", digest("a"), metrics={"tokens": 5.0})
    row = registry.run(stage)
    assert (row.parent_id, row.mlflow_run_id, row.prefect_flow_run_id) == (whole, "m", "p")
    assert (row.status, row.label, row.artifact, row.metrics) == (
        "completed",
        "completed",
        digest("a"),
        {"loss": 3.0, "tokens": 5.0},
    )
    assert row.work_folder == Path("/some/folder")
    assert row.pid == os.getpid()
    assert row.ended is not None
    assert timedelta() <= row.ended - row.started < timedelta(minutes=1)
    assert [run.id for run in registry.runs(parent=whole)] == [stage]
    assert [run.id for run in registry.runs()] == [stage, whole]
    with pytest.raises(NotFoundError, match="No run 'nothing'"):
        registry.run("nothing")


def test_a_run_whose_process_died_is_shown_as_lost(registry: Registry) -> None:
    mine = registry.start_run("tiny", "pretrain")
    script = (
        f"from cupola_platform.registry import Registry; print(Registry({registry.url!r}).start_run('tiny', 'sft'))"
    )
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert [row.id for row in registry.sweep_lost_runs()] == [other]
    assert registry.run(other).label == "failed (lost)"
    assert "ended without reporting a result" in str(registry.run(other).error)
    assert registry.run(mine).label == "running"
    assert registry.sweep_lost_runs() == []


def test_a_postgresql_that_is_restarted_is_waited_for_and_nothing_is_written_twice(
    own_postgresql: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(Registry(own_postgresql.database())) as registry:
        registry.add_artifact(manifest("a"))
        own_postgresql.stop()
        restart = threading.Timer(3.0, own_postgresql.start)
        restart.start()
        began = time.monotonic()
        run = registry.start_run("tiny", "pretrain")
        assert time.monotonic() - began > 2.5
        restart.join()
        registry.set_alias("champion", digest("a"), "because")
        registry.finish_run(run, "completed", digest("a"))
        assert [row.label for row in registry.runs()] == ["completed"]
        assert len(registry.alias_history("champion")) == 1
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith("Check registry_url and that its server is running. Trying again for 60 s.")


def test_a_postgresql_that_stays_away_is_one_line_after_a_while_and_a_wrong_name_at_once(
    own_postgresql: Any,
) -> None:
    url = own_postgresql.database()
    began = time.monotonic()
    with pytest.raises(RegistryError, match='database "nothing" does not exist'):
        Registry(f"{url.rpartition('/')[0]}/nothing")
    assert time.monotonic() - began < 5, "it answered: there is nothing to wait for"
    with closing(Registry(url, patience=2.0)) as registry:
        own_postgresql.stop()
        began = time.monotonic()
        with pytest.raises(
            RegistryError, match=r"^The registry postgresql\+psycopg://127.0.0.1:\d+/test_\d+ refused: "
        ):
            registry.start_run("tiny")
        assert 2.0 <= time.monotonic() - began < 10
        with pytest.raises(RegistryError, match=r"Connection refused"):
            Registry(url, patience=0)
        own_postgresql.start()
        assert registry.runs() == []


WRITER = """
import sys, time
from pathlib import Path
from cupola_platform.artifacts import Manifest
from cupola_platform.registry import Registry

url, writer, digest, folder = *sys.argv[1:4], Path(sys.argv[4])
(folder / f"ready-{writer}").touch()
while len(list(folder.glob("ready-*"))) < 4:
    time.sleep(0.01)
registry = Registry(url)  # all open the new database, and migrate it, at once
for number in range(10):
    run = registry.start_run("tiny", f"writer-{writer}")
    manifest = Manifest(kind="tokens", digest=digest, files=(), fingerprint=f"{number:064}", config={}, metrics={},
                        code_version="", environment={}, created="2026-01-01T12:00:00+00:00")
    registry.add_artifact(manifest, run)
    registry.set_alias("champion", digest, f"{writer}.{number}")
    registry.finish_run(run, "completed", digest)
"""


def test_many_processes_open_a_new_registry_and_write_at_once(database_url: str, tmp_path: Path) -> None:
    command_line = [sys.executable, "-c", WRITER, database_url]
    writers = [subprocess.Popen([*command_line, str(writer), digest("a"), tmp_path]) for writer in range(4)]
    assert [process.wait(100) for process in writers] == [0] * 4
    with closing(Registry(database_url)) as registry:
        assert len(registry.runs()) == 40
        assert {run.status for run in registry.runs()} == {"completed"}
        assert len(registry.artifacts()) == 1
        moves = registry.alias_history("champion")
        assert len(moves) == 40
        assert [move.previous for move in moves] == [digest("a")] * 39 + [None]


def test_the_migrations_create_the_tables(database_url: str) -> None:
    engine = open_engine(database_url)
    with engine.connect() as connection:
        config = alembic_config(connection)
        command.check(config)
        assert ScriptDirectory.from_config(config).get_heads() == [HEAD]
    with engine.begin() as connection:
        command.downgrade(alembic_config(connection), "base")
    engine.dispose()
    with closing(Registry(database_url)) as registry:
        assert registry.artifacts() == []


def test_sqlite_keeps_a_write_ahead_log_and_foreign_keys(tmp_path: Path) -> None:
    registry = Registry(f"sqlite:///{tmp_path}/new/registry.db")
    with closing(sqlite3.connect(tmp_path / "new/registry.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    with pytest.raises(RegistryError, match="FOREIGN KEY constraint failed"):
        registry.start_run("tiny", "sft", parent="no-such-run")


def test_a_registry_of_a_newer_version_is_refused(database_url: str) -> None:
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('r9999')")
    engine.dispose()
    with pytest.raises(RegistryError, match="comes from a newer Cupola"):
        Registry(database_url)


def test_a_registry_of_cupola_0_1_is_refused_and_not_touched(database_url: str) -> None:
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('r0003')")
    with pytest.raises(RegistryError, match=r"belongs to Cupola 0\.1, .* Name another --workspace") as caught:
        Registry(database_url)
    assert "\n" not in str(caught.value)
    assert inspect(engine).get_table_names() == ["alembic_version"]
    engine.dispose()


def test_a_silent_server_is_one_clear_line_without_the_password() -> None:
    with pytest.raises(RegistryError, match=r"The registry postgresql\+psycopg://127.0.0.1:9/db refused") as caught:
        Registry("postgresql+psycopg://me:secret@127.0.0.1:9/db", patience=0)
    assert "\n" not in str(caught.value)
