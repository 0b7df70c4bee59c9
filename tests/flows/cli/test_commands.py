"""Every command has help, and user errors are one line with exit status 2."""

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cupola_flows.cli import app


def commands(group: Any, *before: str) -> list[list[str]]:
    """Every command and subgroup of a group, as typed."""
    found: list[list[str]] = []
    for name, command in group.commands.items():
        found += [[*before, name], *(commands(command, *before, name) if hasattr(command, "commands") else [])]
    return found


COMMANDS = commands(typer.main.get_command(app))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(command: list[str]) -> None:
    shown = CliRunner().invoke(app, [*command, "--help"])
    assert shown.exit_code == 0
    assert f"Example: cupola {' '.join(command)}" in shown.output


def test_an_empty_workspace_suggests_the_first_command(cupola: Any) -> None:
    assert cupola("runs").stdout == "No runs yet. Start with: cupola run tiny\n"
    assert cupola.json("runs") == []
    assert cupola.json("artifacts") == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("run", "tinny"), "tinny: no recipe by that name, and no such file. Did you mean 'tiny'?"),
        (("run", "tiny", "--only", "pretrian"), "--only pretrian: there is no such stage. Did you mean 'pretrain'?"),
        (("run", "tiny", "--set", "seed=a"), "tiny: seed: 'a': input should be a valid integer"),
        (("show", "champion"), "No artifact, alias or folder named 'champion'"),
        (("checkpoint", "import", "--from", "/nowhere"), "--from /nowhere: no such folder."),
        (
            ("verify-layout", "smoke", "--layout", "tp=2", "--against", "tp=1", "--steps", "a"),
            "Invalid value for '--steps'",
        ),
        (("run", "tiny", "--bogus"), "No such option: --bogus. See: cupola run --help"),
        (("checkpoint", "imprt"), "No such command 'imprt'. Did you mean 'import'? See: cupola checkpoint --help"),
        (("run",), "Missing argument 'RECIPE'. See: cupola run --help"),
    ],
)
def test_a_user_error_is_one_line_and_exit_status_two(cupola: Any, arguments: tuple[str, ...], line: str) -> None:
    done = cupola(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"cupola: error: {line}")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_presets_are_listed_with_their_sizes(cupola: Any) -> None:
    rows = {row.pop("preset"): row for row in cupola.json("presets")}
    assert rows["qwen2-57b-a14b"] == {
        "parameters": 57_408_658_944, "active": 14_249_270_784, "layers": 28, "hidden": 3584, "heads": 28, "groups": 4,
        "vocabulary": 151_936, "longest": 32_768,
    }  # fmt: skip


def test_the_doctor_reports_what_this_machine_has(cupola: Any) -> None:
    found = {row["what"]: row for row in json.loads(cupola("doctor", "--json").stdout)}
    assert found["Python"]["state"] == "ok"
    assert found["torch"]["detail"].startswith("2.13.0")
    assert found["registry"]["detail"] == "SQLite"


def test_a_workspace_of_cupola_0_1_is_refused_in_one_line_by_commands_that_read_or_start(cupola: Any) -> None:
    cupola.workspace.mkdir()
    registry = cupola.workspace / "registry.db"
    with closing(sqlite3.connect(registry)) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        connection.execute("INSERT INTO alembic_version VALUES ('r0003')")
        connection.commit()
    before = registry.read_bytes()
    for command in (["runs"], ["run", "smoke"], ["up"]):
        done = cupola(*command)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "belongs to Cupola 0.1" in done.stderr
    found = {row["what"]: row for row in json.loads(cupola("doctor", "--json").stdout)}
    assert found["registry"]["state"] == "missing"
    assert registry.read_bytes() == before
    assert sorted(path.name for path in cupola.workspace.iterdir()) == ["registry.db"]


def test_the_doctor_checks_the_store_and_the_registry(cupola: Any) -> None:
    away = {
        "CUPOLA_STORE_URL": "s3://bucket", "CUPOLA_S3_ENDPOINT_URL": "http://127.0.0.1:9",
        "CUPOLA_REGISTRY_URL": "postgresql+psycopg://127.0.0.1:9/db", "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
    }  # fmt: skip
    done = replace(cupola, variables=away)("doctor", "--json")
    assert done.returncode == 1
    found = {row["what"]: row for row in json.loads(done.stdout)}
    assert found["store"]["state"] == found["registry"]["state"] == "missing"
    assert "http://127.0.0.1:9 cannot be reached" in found["store"]["detail"]
    assert "Connection refused" in found["registry"]["detail"]
