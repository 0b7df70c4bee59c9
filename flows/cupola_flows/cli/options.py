"""Options that several commands share, and printing of tables."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from cupola_flows.terminal.text import plain, stdout
from cupola_platform.security.urls import shown
from cupola_platform.settings import Settings, load_settings
from cupola_platform.workspace import Workspace

WorkspaceOption = Annotated[
    Path | None,
    typer.Option(
        "--workspace",
        metavar="DIR",
        help="Folder for databases, artifacts and logs. Default: CUPOLA_HOME or ./.cupola.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Reference = Annotated[str, typer.Argument(metavar="ID", help="Id or its first characters, alias, or folder.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key, such as stages.pretrain.steps=200. Repeatable."),
]
RunOnOption = Annotated[
    str | None, typer.Option("--run-on", metavar="CLUSTER", help="Run all jobs on this cluster of cupola.toml.")
]


def settings_of(workspace: Path | None) -> Settings:
    """The effective settings of a workspace."""
    return load_settings(workspace)


def open_workspace(workspace: Path | None) -> Workspace:
    """The workspace given by the options."""
    return Workspace.open(workspace)


def print_rows(rows: Sequence[Mapping[str, Any]], *, as_json: bool, empty: str) -> None:
    """Print rows as a table or a JSON list; without rows, print the hint `empty`."""
    rows = [{key: shown(value) if isinstance(value, str) else value for key, value in row.items()} for row in rows]
    if as_json:
        print(json.dumps(rows, indent=2, default=str))
        return
    console = stdout()
    if not rows:
        console.print(empty)
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in rows[0]:
        table.add_column(heading, overflow="fold", no_wrap=heading not in {"error", "detail"})
    for row in rows:
        cells = [plain(str(value or "")) for value in row.values()]
        for cell in cells:
            cell.no_wrap, cell.overflow = True, "ellipsis"
        table.add_row(*cells)
    console.print(table)
