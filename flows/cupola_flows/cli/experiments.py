"""Commands that fit models to series of small runs: mix, fit-laws. Only they load SciPy."""

import json
from functools import partial
from typing import Annotated

import typer
from rich.console import Console

from cupola_flows.cli.options import JsonOption, SetOption, WorkspaceOption, open_workspace, print_rows
from cupola_flows.experiments.series import Series, basis_of, by_source, numbers, pair_of
from cupola_flows.recipe.loading import load_recipe
from cupola_flows.terminal.display import make_display

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name, or a YAML file.")]
StageOption = Annotated[str, typer.Option("--stage", metavar="NAME", help="The pretraining stage. Default: the first.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(epilog="Example: cupola mix mine.yaml --runs 24 --steps 200 --target code=0.5 --target web=0.5")(mix)
    app.command(
        "fit-laws",
        epilog=(
            "Example: cupola fit-laws mine.yaml --size num_layers=2 --size num_layers=4 --tokens "
            "200000,400000,800000 --at 1e7,5e7"
        ),
    )(fit_laws)


def mix(
    recipe: RecipeArgument,
    runs: Annotated[int, typer.Option(min=3, help="Number of small models to train.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Training steps per model.")] = 100,
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="SOURCE=SHARE", help="Weight of a source's loss. Default: equal weights. Repeatable."),
    ] = None,
    max_epochs: Annotated[
        list[str] | None,
        typer.Option(metavar="SOURCE=N", help="Maximum epochs over a source in the recipe's training. Repeatable."),
    ] = None,
    heldout_tokens: Annotated[int, typer.Option(min=1, help="Maximum held-out tokens per source.")] = 16_384,
    stage: StageOption = "",
    overrides: SetOption = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Train small models on different mixtures and propose source weights. Resumes an interrupted search."""
    from cupola_flows.experiments import mixture_search

    opened = open_workspace(workspace)
    basis = basis_of(opened, load_recipe(recipe, overrides or []), stage)
    known = list(basis.sources)
    options = {
        "runs": runs,
        "steps": steps,
        "targets": by_source("--target", target or [], known),
        "max_epochs": by_source("--max-epochs", max_epochs or [], known),
        "heldout_tokens": heldout_tokens,
    }
    display = partial(make_display, console=Console(stderr=True))
    series = Series(opened, basis, "mixture", options, display, "cupola_flows.experiments.mixture_search")
    artifact = mixture_search.mix(series, **options)  # type: ignore[arg-type]
    mixture = json.loads((artifact.path / "mixture.json").read_text())
    if as_json:
        print(json.dumps({"artifact": artifact.id, **mixture}, indent=2))
        return
    rows = [
        {"source": name, "baseline": f"{mixture['baseline'][name]:.3f}", "weight": f"{weight:.3f}",
         "90%": f"{mixture['low'][name]:.3f} to {mixture['high'][name]:.3f}"}
        for name, weight in mixture["weights"].items()
    ]  # fmt: skip
    print_rows(rows, as_json=False, empty="")
    print(f"weights: {{{', '.join(f'{name}: {weight:.3f}' for name, weight in mixture['weights'].items())}}}")
    print(f"Predicted loss {mixture['predicted_loss']:.4f}, baseline {mixture['baseline_loss']:.4f}.")
    print(
        f"Leave-one-out: RMS error {mixture['left_out_error']:.4f}, rank correlation {mixture['rank_correlation']:.2f}."
    )
    print(f"artifact {artifact.id}: {artifact.path / 'mixture.html'}")


def fit_laws(
    recipe: RecipeArgument,
    size: Annotated[
        list[str],
        typer.Option(metavar="KEY=VALUE,...", help="Changes to the recipe's model, one model per option. Repeatable."),
    ],
    tokens: Annotated[str, typer.Option(metavar="N,...", help="Training lengths to try, in tokens.")],
    lr: Annotated[str, typer.Option(metavar="X,...", help="Learning rates to try.")] = "1e-3,2e-3,4e-3,8e-3",
    batch: Annotated[str, typer.Option(metavar="N,...", help="Global batch sizes to try, in sequences.")] = "4,8,16",
    at: Annotated[
        list[str] | None,
        typer.Option(metavar="N,D", help="Predict the best settings for N parameters and D tokens. Repeatable."),
    ] = None,
    stage: StageOption = "",
    overrides: SetOption = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Fit the best learning rate and batch size as power laws of model size N and training tokens D."""
    from cupola_flows.experiments.scaling_laws import fit, sized
    from cupola_platform.fitting.scaling import PowerLaw

    opened = open_workspace(workspace)
    basis = basis_of(opened, load_recipe(recipe, overrides or []), stage)
    assert basis.job.model is not None
    lengths = [int(number) for number in numbers("--tokens", tokens)]
    targets = [pair_of("--at", text) for text in at or []]
    rates, batches = numbers("--lr", lr), [int(number) for number in numbers("--batch", batch, least=0.99)]
    options = {"sizes": size, "tokens": lengths, "lr": rates, "batch": batches}
    series = Series(
        opened,
        basis,
        "laws",
        options,
        partial(make_display, console=Console(stderr=True)),
        "cupola_flows.experiments.scaling_laws",
    )
    models = [sized(basis.job.model, option) for option in size]
    artifact = fit(series, models=models, tokens=lengths, rates=rates, batches=batches)
    fitted = json.loads((artifact.path / "laws.json").read_text())
    laws = {name: PowerLaw.of(fitted[name]) for name in ("lr", "batch_tokens")}
    fitted["at"] = [
        {"parameters": n, "tokens": d}
        | {name: {"best": law(n, d), "interval": law.interval(n, d)} for name, law in laws.items()}
        for n, d in targets
    ]
    if as_json:
        print(json.dumps({"artifact": artifact.id, **fitted}, indent=2))
        return
    rows = [
        {"law": name, "coefficient": f"{fitted[name]['coefficient']:.4g}"}
        | {key: "{:.3f} ({:.3f} to {:.3f})".format(fitted[name][key], *fitted[name]["intervals"][key])
           for key in ("n_exponent", "d_exponent")}
        for name in ("lr", "batch_tokens")
    ]  # fmt: skip
    print_rows(rows, as_json=False, empty="")
    for point in fitted["at"]:
        best = ", ".join(
            "{} {:.3g} ({:.3g} to {:.3g})".format(name, point[name]["best"], *point[name]["interval"]) for name in laws
        )
        print(f"N={point['parameters']:.3g} D={point['tokens']:.3g}: {best}")
    for option, name in (("--lr", "lr"), ("--batch", "batch")):
        if outside := fitted["at_edges"][name]:
            pairs = ", ".join(f"N={n:.3g} D={d:.3g}" for n, d in outside)
            print(f"The best {option} is at the edge of the range for {pairs}. Widen {option}.")
    print(f"artifact {artifact.id}: {artifact.path / 'laws.html'}")
