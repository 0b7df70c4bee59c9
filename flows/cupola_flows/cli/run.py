"""`cupola run`."""

import signal
from functools import partial
from typing import Annotated

import typer
from rich.console import Console

from cupola_flows.cli.options import SetOption, WorkspaceOption
from cupola_flows.orchestration.running import run_plain, run_under_prefect
from cupola_flows.reports.results import print_results
from cupola_flows.runs.opening import open_session
from cupola_flows.runs.session import Session
from cupola_flows.terminal.display import make_display
from cupola_platform.errors import ConfigError, CupolaError
from cupola_platform.tracking.spool import Spool
from cupola_platform.tracking.tracker import flush_spool


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(epilog="Example: cupola run tiny --set stages.pretrain.steps=200 --only prepare,pretrain")(run)


def run(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name (tiny), or a YAML file.")],
    overrides: SetOption = None,
    only: Annotated[str, typer.Option(metavar="STAGE,...", help="Run these stages only.")] = "",
    prefect: Annotated[bool, typer.Option("--prefect/--no-prefect", help="Run as Prefect flows, or without.")] = True,
    profile: Annotated[
        str, typer.Option(metavar="FIRST:LAST", help="Trace these steps of each training stage with torch's profiler.")
    ] = "",
    workspace: WorkspaceOption = None,
) -> None:
    """Carry out a recipe; what was done before with the same fingerprint is reused."""
    console = Console()
    for number in (signal.SIGINT, signal.SIGTERM):  # what a script starts in the background is born deaf to SIGINT
        signal.signal(number, _interrupt)
    names = [name for name in only.split(",") if name]
    steps = _steps(profile)
    session = open_session(recipe, overrides or [], names, workspace, partial(make_display, console=console))
    session.profile = steps
    if session.reuse_all():
        print_results(session, console)
        console.print(f"Nothing to do: all {len(session.names)} stages were run before.")
        _send_what_waits(session, console)
        return
    try:
        with session.display.shown():
            (run_under_prefect if prefect else run_plain)(session)
    except CupolaError:
        print_results(session, console)
        console.print("What is finished is kept; the same command goes on from there.")
        raise
    print_results(session, console)


def _send_what_waits(session: Session, console: Console) -> None:
    """What an earlier run could not tell MLflow: it is told now, though there is nothing to run."""
    flushed = flush_spool(session.workspace)
    if flushed.left:
        console.print(flushed.said(Spool(session.workspace.folder("spool"))), markup=False)
    elif flushed.sent:
        console.print(f"Sent MLflow what {flushed.sent} earlier runs had left.")


def _steps(text: str) -> tuple[int, int] | None:
    """First and last step from `10:12`; none from nothing."""
    if not text:
        return None
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ConfigError(f"--profile {text}: give the first and the last step, such as 10:12.")
    return int(first), int(last)


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt
