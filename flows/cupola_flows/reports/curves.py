"""Held-out loss curves of the training stages of one run, over the tokens that each was trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cupola_flows.recipe.schema import Recipe
from cupola_flows.stages.training import TrainStage
from cupola_platform.errors import ConfigError, NotFoundError
from cupola_platform.registry import RunRow
from cupola_platform.workspace import Workspace
from cupola_trainer.reporting.metrics import read_metrics

Curve = list[tuple[float, float]]
"""Million tokens since the start of the stage, and held-out loss in nats per token."""
LOOKED_AT = 10_000
"""How many of the newest runs are searched."""


@dataclass(frozen=True)
class Curves:
    """The curves of one run of a recipe, by stage."""

    run: RunRow
    """The run of the whole recipe."""
    by_stage: Mapping[str, Curve]


def heldout_curves(workspace: Workspace, recipe: Recipe, stages: Sequence[str] = (), run: str = "") -> Curves:
    """The curves of one run, including stages that it reused from earlier runs. Stages that were not reached, that were
    trained on another machine, or that measured no held-out loss are left out.

    Args:
        stages: only these, in this order; all training stages if empty.
        run: the id of a run of the whole recipe, or its first characters; if empty, the newest run with a curve.

    Raises:
        ConfigError: the recipe has no such stage, or it does not train.
        NotFoundError: there is no such run, or no curve.
    """
    known = [name for name in recipe.order() if isinstance(recipe.stages[name], TrainStage)]
    for name in stages:
        if name not in known:
            raise ConfigError(f"--stage {name}: not a training stage of {recipe.name}. Known: {', '.join(known)}.")
    whole = [row for row in workspace.registry.runs(LOOKED_AT) if row.recipe == recipe.name and not row.stage]
    chosen = [row for row in whole if row.id.startswith(run)]
    if run and len(chosen) != 1:
        raise NotFoundError(
            f"--run {run}: matches {'several runs' if chosen else 'no run'} of {recipe.name}. See: cupola runs"
        )
    for row in chosen:
        if curves := _of_run(workspace, row, list(stages) or known):
            return Curves(row, curves)
    raise NotFoundError(f"{recipe.name}: no held-out losses on this machine yet. Start with: cupola run {recipe.name}")


def _of_run(workspace: Workspace, run: RunRow, stages: Sequence[str]) -> dict[str, Curve]:
    digests = {row.stage: row.artifact for row in workspace.registry.runs(LOOKED_AT, parent=run.id) if row.artifact}
    curves = {name: _curve(workspace, digest) for name in stages if (digest := digests.get(name))}
    return {name: curve for name, curve in curves.items() if curve}


def _curve(workspace: Workspace, digest: str) -> Curve:
    manifest = workspace.resolve(digest).manifest
    path = workspace.root / "work" / manifest.fingerprint / "job" / "metrics.jsonl"
    if not path.is_file():
        return []
    batch = manifest.config["batch"]
    tokens = batch["sequence_length"] * batch["global_batch_size"]
    losses = [(each["step"], each.get("heldout_loss")) for each in read_metrics(path) if each["event"] == "evaluate"]
    return [(step * tokens / 1e6, loss) for step, loss in losses if loss is not None]


def draw(curves: Mapping[str, Curve], title: str, to: Path) -> None:
    """Plot the curves with a legend; the file name's suffix decides the format.

    Raises:
        ConfigError: the format is not supported.
    """
    from matplotlib import rc_context  # imported here: takes half a second, which other commands would wait for
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.6), layout="constrained")
    kinds = figure.canvas.get_supported_filetypes()
    if to.suffix[1:] not in kinds:
        raise ConfigError(f"--to {to}: unsupported image format. Use one of: .{', .'.join(sorted(kinds))}.")
    with rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": title}
    ):  # keeps text as text, and makes files reproducible
        axes = figure.add_subplot(
            title=title, xlabel="million tokens since the start of the stage", ylabel="nats per token"
        )
        for name, curve in curves.items():
            axes.plot(*zip(*curve, strict=True), label=name)
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(to, dpi=144, metadata={"Date": None} if to.suffix == ".svg" else None)
