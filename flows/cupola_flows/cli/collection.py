"""`cupola gc`."""

import json
from collections import Counter
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated

import typer

from cupola_flows.cli.artifacts import size
from cupola_flows.cli.options import JsonOption, WorkspaceOption, open_workspace, print_rows
from cupola_flows.runs.collection import collect_garbage

DAYS = 30.0


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("gc", epilog="Example: cupola gc --dry-run --older-than 7")(gc)


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
    older_than: Annotated[
        float, typer.Option(min=0, metavar="DAYS", help="Keep everything used within so many days.")
    ] = DAYS,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Remove artifacts, work folders, checkpoint copies and jobs' files in the
    store that nothing needs.

    Keeps artifacts with an alias or with annotations, those used or made within
    the last DAYS, everything that a run in progress may read, and the ancestors
    of all these. Optimizer states are nobody's ancestors. A stage whose artifact
    was removed is made again when a recipe needs it.
    """
    ws = open_workspace(workspace)
    removed = list(collect_garbage(ws, older_than=timedelta(days=older_than), dry_run=dry_run))
    if as_json:
        rows = [asdict(each) for each in removed]
        total = sum(each.bytes for each in removed)
        print(json.dumps({"dry_run": dry_run, "bytes": total, "removed": rows}, indent=2))
        return
    rows = [{**asdict(each), "bytes": size(each.bytes)} for each in removed]
    print_rows(rows, as_json=False, empty="Nothing to remove.")
    if removed:
        counts = Counter(each.what for each in removed)
        listed = ", ".join(
            f"{count} {what}{'s' if count > 1 and not what.endswith('s') else ''}" for what, count in counts.items()
        )
        freed = size(sum(each.bytes for each in removed))
        print(f"{'Would remove' if dry_run else 'Removed'} {listed}: {freed}.")
