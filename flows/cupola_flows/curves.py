"""Held-out losses of a recipe's training stages over the tokens that each was trained on, in one picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from cupola_flows.schema import Recipe
from cupola_flows.stages import TrainStage
from cupola_platform.errors import ConfigError, NotFoundError
from cupola_platform.workspace import Workspace
from cupola_trainer.metrics import read_metrics

Curve = list[tuple[float, float]]
"""Million tokens since the stage began, and held-out loss in nats a token."""


def heldout_curves(workspace: Workspace, recipe: Recipe, stages: Sequence[str] = ()) -> dict[str, Curve]:
    """By stage, from the newest run of each; what was never run on this machine, or measured nothing, is left out.

    Args:
        stages: these only, and in this order; none for all that train.

    Raises:
        ConfigError: a stage that the recipe does not have, or that does not train.
        NotFoundError: no curve at all.
    """
    known = [name for name in recipe.order() if isinstance(recipe.stages[name], TrainStage)]
    for name in stages:
        if name not in known:
            raise ConfigError(f"--stage {name}: no stage of {recipe.name} that trains. Known: {', '.join(known)}.")
    digests: dict[str, str] = {}
    for run in workspace.registry.runs(10_000):
        if run.recipe == recipe.name and run.artifact:
            digests.setdefault(run.stage, run.artifact)
    found = {name: _curve(workspace, digests[name]) for name in stages or known if name in digests}
    found = {name: curve for name, curve in found.items() if curve}
    if not found:
        raise NotFoundError(
            f"{recipe.name}: no held-out losses on this machine yet. Start with: cupola run {recipe.name}"
        )
    return found


def _curve(workspace: Workspace, digest: str) -> Curve:
    manifest = workspace.resolve(digest).manifest
    path = workspace.root / "work" / manifest.fingerprint / "job" / "metrics.jsonl"
    if not path.is_file():
        return []
    batch = manifest.config["batch"]
    tokens = batch["sequence_length"] * batch["global_batch_size"]
    events = read_metrics(path)
    return [(each["step"] * tokens / 1e6, each["heldout_loss"]) for each in events if each["event"] == "evaluate"]


def draw(curves: Mapping[str, Curve], title: str, to: Path) -> None:
    """The curves as a picture, each with its stage's name; the name's ending says of what kind.

    Raises:
        ConfigError: a kind of picture that there is not.
    """
    from matplotlib import rc_context  # here: half a second, which other commands need not wait for
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.6), layout="constrained")
    kinds = figure.canvas.get_supported_filetypes()
    if to.suffix[1:] not in kinds:
        raise ConfigError(f"--to {to}: no kind of picture. End the name in one of: .{', .'.join(sorted(kinds))}.")
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):  # text stays text, equal curves equal files
        axes = figure.add_subplot(title=title, xlabel="million tokens since the stage began", ylabel="nats a token")
        for name, curve in curves.items():
            axes.plot(*zip(*curve, strict=True), label=name)
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(to, dpi=144, metadata={"Date": None} if to.suffix == ".svg" else None)
