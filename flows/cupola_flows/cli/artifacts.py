"""Read-only commands: runs, artifacts, show, lineage, compare."""

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from cupola_flows.cli.options import JsonOption, Reference, WorkspaceOption, open_workspace, print_rows
from cupola_flows.reports.comparison import compare_checkpoints, print_comparison
from cupola_flows.reports.lineage import as_json as lineage_as_json
from cupola_flows.reports.lineage import as_tree
from cupola_flows.terminal.text import plain, stdout
from cupola_platform.artifacts import Artifact


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(epilog="Example: cupola runs --limit 5")(runs)
    app.command("artifacts", epilog="Example: cupola artifacts --kind checkpoint")(artifacts)
    app.command(epilog="Example: cupola show champion --json")(show)
    app.command(epilog="Example: cupola lineage champion")(lineage)
    app.command(epilog="Example: cupola compare champion 3f2a90")(compare)


def runs(
    limit: Annotated[int, typer.Option(min=1, help="Number of runs to list.")] = 20,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """List runs, newest first."""
    ws = open_workspace(workspace)
    ws.registry.sweep_lost_runs()
    rows = [
        {
            "id": run.id,
            "recipe": run.recipe,
            "stage": run.stage or "(all)",
            "status": run.label,
            "started": f"{run.started:%m-%d %H:%M}",
            "artifact": (run.artifact or "")[:12],
            "error": run.error,
        }
        for run in ws.registry.runs(limit)
    ]
    print_rows(rows, as_json=as_json, empty="No runs yet. Start with: cupola run tiny")


def artifacts(
    kind: Annotated[str | None, typer.Option(help="Only artifacts of this kind, such as checkpoint.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Number of artifacts to list.")] = 50,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """List artifacts and their aliases, newest first."""
    ws = open_workspace(workspace)
    names: dict[str, list[str]] = {}
    for alias in ws.registry.aliases():
        names.setdefault(alias.digest, []).append(alias.name)
    rows = [
        {
            "id": row.id,
            "kind": row.kind,
            "stage": row.stage,
            "recipe": row.recipe,
            "alias": ", ".join(names.get(row.digest, [])),
            "size": size(row.size),
            "created": f"{row.created:%m-%d %H:%M}",
        }
        for row in ws.registry.artifacts(kind, limit)
    ]
    print_rows(rows, as_json=as_json, empty="No artifacts yet. Start with: cupola run tiny")


def show(reference: Reference, as_json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Show an artifact: kind, path, parents, metrics and config."""
    ws = open_workspace(workspace)
    described = describe(ws.resolve(reference))
    described["aliases"] = [alias.name for alias in ws.registry.aliases() if alias.digest == described["digest"]]
    if as_json:
        print(json.dumps(described, indent=2))
        return
    console = stdout()
    for key in ("kind", "digest", "path", "aliases", "stage", "recipe", "created", "parents", "metrics", "config"):
        value = described[key]
        if value:
            text = (
                value
                if isinstance(value, str)
                else json.dumps(value, indent=2 if key in {"metrics", "config"} else None)
            )
            console.print(f"[bold]{key:<8}[/] ", end="")
            console.print(plain(text), highlight=False, soft_wrap=True)
    console.print(f"[bold]files[/]    {len(described['files'])}, {size(sum(f['size'] for f in described['files']))}")


def lineage(reference: Reference, as_json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Show the lineage of an artifact, down to the source files."""
    ws = open_workspace(workspace)
    node = ws.lineage(ws.resolve(reference))
    if as_json:
        print(json.dumps(lineage_as_json(node), indent=2))
    else:
        stdout().print(as_tree(node))


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A checkpoint: id, alias or folder.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another checkpoint.")],
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Compare two checkpoints: model shapes, evaluation results, and where their lineages differ."""
    ws = open_workspace(workspace)
    comparison = compare_checkpoints(ws, ws.resolve(a), ws.resolve(b))
    if as_json:
        print(json.dumps(comparison, indent=2))
    else:
        print_comparison(comparison, stdout())


def describe(artifact: Artifact) -> dict[str, Any]:
    """The manifest as plain JSON, with the artifact's id and path."""
    return {"id": artifact.id, "path": str(artifact.path), **json.loads(json.dumps(asdict(artifact.manifest)))}


def size(count: int) -> str:
    """A number of bytes as text, such as `3.1 MB`."""
    amount, units = float(count), ["B", "kB", "MB", "GB"]
    while amount >= 1000 and len(units) > 1:
        amount, units = amount / 1000, units[1:]
    return f"{amount:.0f} B" if units[0] == "B" else f"{amount:.1f} {units[0]}"
