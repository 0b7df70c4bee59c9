"""`cupola run`."""

import signal
from functools import partial
from typing import Annotated

import typer
from rich.console import Console

from cupola_flows.cli.options import RunOnOption, SetOption, WorkspaceOption
from cupola_flows.orchestration.running import run_plain, run_under_prefect
from cupola_flows.reports.results import print_results
from cupola_flows.runs.opening import open_session
from cupola_flows.runs.session import Session
from cupola_flows.terminal.display import make_display
from cupola_platform.errors import ConfigError, CupolaError, DetachedError
from cupola_platform.tracking.spool import Spool
from cupola_platform.tracking.tracker import flush_spool


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(epilog="Example: cupola run tiny --set stages.pretrain.steps=200 --only prepare,pretrain")(run)


def run(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name (tiny), or a YAML file.")],
    overrides: SetOption = None,
    only: Annotated[str, typer.Option(metavar="STAGE,...", help="Run only these stages.")] = "",
    prefect: Annotated[bool, typer.Option("--prefect/--no-prefect", help="Run as Prefect flows.")] = True,
    profile: Annotated[
        str, typer.Option(metavar="FIRST:LAST", help="Profile these steps of each training stage with torch.profiler.")
    ] = "",
    run_on: RunOnOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Run a recipe. Stages whose fingerprint has not changed are reused."""
    console = Console()
    names = [name for name in only.split(",") if name]
    steps = _steps(profile)
    session = open_session(recipe, overrides or [], names, workspace, partial(make_display, console=console), run_on)
    session.profile = steps
    execute(session, console, prefect=prefect)


def execute(session: Session, console: Console, *, prefect: bool) -> None:
    """Run a session in the foreground, and print its results."""
    for number in (signal.SIGINT, signal.SIGTERM):  # scripts start background jobs with SIGINT ignored
        signal.signal(number, _interrupt)
    if session.reuse_all():
        print_results(session, console)
        console.print(f"Nothing to do: all {len(session.names)} stages are up to date.")
        _send_pending(session, console)
        return
    try:
        with session.display.shown():
            (run_under_prefect if prefect else run_plain)(session)
    except DetachedError:
        print_results(session, console)
        raise
    except CupolaError:
        print_results(session, console)
        console.print("Finished work is kept. Run the same command to resume.")
        raise
    print_results(session, console)


def _send_pending(session: Session, console: Console) -> None:
    """Send MLflow what earlier runs could not, even though there is nothing to run."""
    flushed = flush_spool(session.workspace)
    if flushed.left:
        console.print(flushed.said(Spool(session.workspace.folder("spool"))), markup=False)
    elif flushed.sent:
        console.print(f"Sent pending MLflow data of {flushed.sent} earlier runs.")


def _steps(text: str) -> tuple[int, int] | None:
    """First and last step of `10:12`; None for an empty text."""
    if not text:
        return None
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ConfigError(f"--profile {text}: give the first and last step, such as 10:12.")
    return int(first), int(last)


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt
