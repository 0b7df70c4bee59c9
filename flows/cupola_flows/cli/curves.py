"""`cupola curves`."""

from pathlib import Path
from typing import Annotated

import typer

from cupola_flows.cli.options import JsonOption, WorkspaceOption, open_workspace, print_rows
from cupola_flows.recipe.loading import load_recipe
from cupola_flows.reports.curves import draw, heldout_curves
from cupola_platform.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(epilog="Example: cupola curves upcycling --to upcycling.svg")(curves)


def curves(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name, or a YAML file.")],
    stage: Annotated[
        list[str] | None,
        typer.Option("--stage", metavar="NAME", help="Only this stage. Repeatable. Default: all training stages."),
    ] = None,
    run: Annotated[
        str, typer.Option(metavar="ID", help="Id of a run of the whole recipe, from cupola runs. Default: the newest.")
    ] = "",
    to: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Plot the curves to this file: .svg, .png or .pdf.")
    ] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Compare the held-out loss curves of the training stages of one run."""
    if to and not to.parent.is_dir():
        raise ConfigError(f"--to {to}: folder {to.parent} does not exist. Create it, or choose another path.")
    loaded = load_recipe(recipe, [])
    heldout = heldout_curves(open_workspace(workspace), loaded, stage or [], run)
    if to:
        draw(heldout.by_stage, f"Held-out loss, recipe {loaded.name}, run {heldout.run.id}", to)
    rows = [
        {
            "run": heldout.run.id,
            "stage": name,
            "first": round(curve[0][1], 4),
            "last": round(curve[-1][1], 4),
            "Mtokens": round(curve[-1][0], 3),
        }
        | ({"curve": curve} if as_json else {})
        for name, curve in heldout.by_stage.items()
    ]
    print_rows(rows, as_json=as_json, empty="")
