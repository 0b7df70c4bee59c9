"""`cupola checkpoint plan`."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter

from cupola_flows.cli.checkpoints.base import convert
from cupola_flows.cli.options import JsonOption, SetOption, print_rows
from cupola_flows.experiments.layout_comparison import parse_layout, pretraining_model, with_vocabulary
from cupola_flows.recipe.loading import load_recipe
from cupola_platform.errors import ConfigError
from cupola_platform.reports.short_numbers import file_size
from cupola_trainer.config import LayoutConfig, ModelConfig
from cupola_trainer.config.layout_rules import validate_layout
from cupola_trainer.training.layout_comparison import layout_name


def register(app: typer.Typer) -> None:
    """Add the command to `cupola checkpoint`."""
    app.command("plan", epilog="Example: cupola checkpoint plan tiny --layout tp=2,dp=4 --ranks-per-node 8")(plan)


def plan(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name, or a YAML file.")],
    layout: Annotated[
        str,
        typer.Option(
            metavar="KEY=N,...", help="The layout. Default: the stage's. Keys: tp, pp, vp, cp, ep, etp, dp, sp."
        ),
    ] = "",
    stage: Annotated[str, typer.Option(help="The pretraining stage whose model to use. Default: the first.")] = "",
    ranks_per_node: Annotated[int, typer.Option(min=1, metavar="N", help="Processes on a node.")] = 8,
    rank: Annotated[int | None, typer.Option(min=0, metavar="N", help="List what this rank writes instead.")] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the files of a training stage's checkpoints in any layout, and the host memory that a save takes.

    Starts no ranks and reads no weights; a trillion parameters on 2,048
    ranks take less than a minute. Precision auto counts as bf16, as on GPUs;
    fp8 saves the same weights, and few bytes more with delayed scaling.
    """
    loaded = load_recipe(recipe, overrides or [])
    name, trained, shape = pretraining_model(loaded, stage)
    model = with_vocabulary(shape, loaded, name)
    wanted = parse_layout("--layout", layout) if layout else trained.layout
    validate_layout(model, wanted)
    if rank is not None and rank >= wanted.world_size:
        raise ConfigError(f"--rank {rank}: the layout has ranks 0 to {wanted.world_size - 1}. Give one of them.")
    precision = "fp32" if trained.precision == "fp32" else "bf16"
    arguments = [
        *("--model", TypeAdapter(ModelConfig).dump_json(model).decode()),
        *("--layout", TypeAdapter(LayoutConfig).dump_json(wanted).decode()),
        *("--precision", precision, "--moments", trained.optimizer.states),
        *("--host-memory", str(trained.checkpoint.host_memory)),
        *("--ranks-per-node", str(ranks_per_node), *(("--rank", str(rank)) if rank is not None else ())),
    ]
    planned = json.loads(convert("plan-save", *arguments))
    if rank is not None:
        rows = planned if as_json else [{**row, "at": f"{row['at']:,}"} for row in planned]
        print_rows(rows, as_json=as_json, empty=f"Rank {rank} writes nothing: others write what it holds.")
    elif as_json:
        print(json.dumps(planned, indent=2))
    else:
        print(f"{name}: {planned['parameters']:,} parameters, {precision}, {layout_name(wanted)}")
        _show(planned, trained.checkpoint.host_memory)


def _show(planned: Mapping[str, Any], limit: float) -> None:
    files = {name: file_size(value) for name, value in planned.items() if isinstance(value, int)}
    memory = {name: f"{planned[f'host_memory_per_{name}'] / 2**30:,.2f} GiB" for name in ("rank", "node")}
    print(f"  ranks         {planned['ranks']:,} on {planned['nodes']:,} nodes")
    print(f"  state/        {files['weights']} in {planned['ranks']:,} files: weights")
    print(f"  optimizer/    {files['optimizer']} in {planned['ranks']:,} files: moments, fp32 weights of a bf16 model")
    print(f"  largest file  {files['largest_file_bytes']}: {planned['largest_file']}")
    print(f"  written       up to {files['written_per_rank']} a rank, {files['written_per_node']} a node")
    print(f"  host memory   {memory['rank']} a rank, {memory['node']} a node; checkpoint.host_memory={limit:g} a rank")
    if planned["written_per_rank"] > planned["host_memory_limit"]:
        print("  A rank writes more than that: after a save, the next update waits until the rest is on disk.")
