"""Commands for MLflow: flush."""

import json

import typer

from cupola_flows.cli.options import JsonOption, WorkspaceOption, open_workspace
from cupola_platform.errors import ServiceError
from cupola_platform.tracking.spool import Spool
from cupola_platform.tracking.tracker import flush_spool

app = typer.Typer(help="Manage MLflow tracking.", no_args_is_help=True, epilog="Example: cupola tracking flush")


@app.callback()
def _group() -> None:
    """Keep this a group, although it has one command."""


@app.command(epilog="Example: cupola tracking flush")
def flush(as_json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Send MLflow what finished runs could not, because it was unreachable or their process was killed."""
    opened = open_workspace(workspace)
    flushed = flush_spool(opened)
    if flushed.left:
        raise ServiceError(flushed.said(Spool(opened.folder("spool"))))
    if as_json:
        print(json.dumps({"sent": flushed.sent, "left": flushed.left}))
    else:
        print(f"Sent {flushed.sent} runs." if flushed.sent else "Nothing to send.")
