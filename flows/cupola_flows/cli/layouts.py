"""`cupola verify-layout`."""

import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cupola_flows.cli.options import JsonOption, RunOnOption, SetOption, WorkspaceOption, open_workspace
from cupola_flows.experiments.layout_comparison import parse_layout, trial_job
from cupola_flows.recipe.loading import load_recipe
from cupola_flows.terminal.text import plain, stdout
from cupola_platform.launch.launcher import is_unshared, make_launcher
from cupola_platform.launch.unshared.launcher import clear
from cupola_trainer.training.layout_comparison import Comparison, layout_name, verify_layout


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("verify-layout", epilog="Example: cupola verify-layout tiny --layout tp=2,pp=2 --against tp=1")(verify)


def verify(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name, or a YAML file.")],
    layout: Annotated[
        str, typer.Option(metavar="KEY=N,...", help="The layout to verify. Keys: tp, pp, vp, cp, ep, etp, dp, sp.")
    ],
    against: Annotated[str, typer.Option(metavar="KEY=N,...", help="The layout to compare with.")] = "tp=1",
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps to compare.")] = 5,
    stage: Annotated[str, typer.Option(help="The pretraining stage whose model to use. Default: the first.")] = "",
    loss_tolerance: Annotated[float, typer.Option(min=0, help="Largest absolute difference in loss.")] = 1e-5,
    norm_tolerance: Annotated[float, typer.Option(min=0, help="Largest relative difference in gradient norm.")] = 1e-4,
    overrides: SetOption = None,
    run_on: RunOnOption = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Train the first steps in two layouts from the same weights and samples. Exits with status 1 if they differ."""
    first, second = parse_layout("--layout", layout), parse_layout("--against", against)
    loaded = load_recipe(recipe, overrides or [])
    opened = open_workspace(workspace)
    console = Console(stderr=True)
    with TemporaryDirectory(dir=opened.folder("work"), prefix="verify-layout-") as scratch:
        job, data = trial_job(opened, loaded, stage, Path(scratch))
        if not as_json:
            console.print(plain(f"Data: {data}"))
        launcher = make_launcher(opened.settings, run_on, at_least=max(first.world_size, second.world_size))
        runs = Path(scratch) / "runs"
        try:
            comparison = verify_layout(
                job,
                first,
                second,
                folder=runs,
                launcher=launcher,
                steps=steps,
                loss_tolerance=loss_tolerance,
                norm_tolerance=norm_tolerance,
                started=lambda each: None if as_json else console.print(f"Training {steps} steps: {layout_name(each)}"),
            )
        finally:
            if is_unshared(opened.settings, run_on):
                clear(opened.settings, runs)
    print(json.dumps(comparison.to_json(), indent=2)) if as_json else _show(comparison)
    raise typer.Exit(0 if comparison.equal else 1)


def _show(compared: Comparison) -> None:
    console = stdout()
    table = Table(box=None, padding=(0, 2, 0, 0))
    names = layout_name(compared.layout), layout_name(compared.against)
    for heading in ("step", *(f"loss {name}" for name in names), "difference"):
        table.add_column(heading, justify="right")
    for heading in (*(f"norm {name}" for name in names), "relative"):
        table.add_column(heading, justify="right")
    for step in compared.steps:
        values = asdict(step)
        table.add_row(
            str(step.step),
            *(f"{values[key]:.7f}" for key in ("loss", "loss_against")),
            f"{step.loss_difference:.1e}",
            *(f"{values[key]:.7f}" for key in ("grad_norm", "grad_norm_against")),
            f"{step.norm_difference:.1e}",
        )
    console.print(table)
    verdict = "EQUAL" if compared.equal else "DIFFERENT"
    console.print(
        f"{verdict}: largest loss difference {compared.loss_difference:.1e} (tolerance "
        f"{compared.loss_tolerance:g}), largest relative gradient norm difference {compared.norm_difference:.1e} "
        f"(tolerance {compared.norm_tolerance:g})."
    )
