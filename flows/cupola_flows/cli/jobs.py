"""`cupola attach` and `cupola cancel`: runs whose jobs go on without the command that started them."""

from functools import partial
from typing import Annotated

import typer
from rich.console import Console

from cupola_flows.cli.options import WorkspaceOption, open_workspace
from cupola_flows.cli.run import execute
from cupola_flows.runs.cancelling import GRACE, cancel_run
from cupola_flows.runs.opening import reopen
from cupola_flows.terminal.display import make_display

Run = Annotated[str, typer.Argument(metavar="RUN", help="Id of a run, as cupola runs lists it.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(epilog="Example: cupola attach 1f0c9ab2d4e7")(attach)
    app.command(epilog="Example: cupola cancel 1f0c9ab2d4e7")(cancel)


def attach(
    run: Run,
    prefect: Annotated[bool, typer.Option("--prefect/--no-prefect", help="Follow as Prefect flows.")] = True,
    workspace: WorkspaceOption = None,
) -> None:
    """Follow a run whose jobs were left to their cluster, and run the rest of its recipe."""
    console = Console()
    execute(reopen(run, workspace, partial(make_display, console=console)), console, prefect=prefect)


def cancel(
    run: Run,
    grace: Annotated[float, typer.Option(min=0, help="Seconds for the job to save before it is killed.")] = GRACE,
    workspace: WorkspaceOption = None,
) -> None:
    """End a run: its job saves and ends, wherever it runs."""
    console = Console()
    for line in cancel_run(open_workspace(workspace), run, grace):
        console.print(line, markup=False)
