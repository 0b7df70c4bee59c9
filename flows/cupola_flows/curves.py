"""Held-out losses of a recipe's training stages over the tokens that each was trained on, in one picture."""

import json
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from cupola_flows.schema import Recipe
from cupola_flows.stages import TrainStage
from cupola_platform.errors import ConfigError, NotFoundError
from cupola_platform.workspace import Workspace

WIDTH, HEIGHT, MARGIN = 760, 440, 64
COLOURS = ("#888888", "#1f77b4", "#d9822b", "#2e8b57", "#9467bd", "#b03a48")
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
    events = (json.loads(line) for line in path.read_text().splitlines())
    return [(each["step"] * tokens / 1e6, each["heldout_loss"]) for each in events if each["event"] == "evaluate"]


def draw(curves: Mapping[str, Curve], title: str) -> str:
    """The curves as SVG, each with its stage's name."""
    points = [point for curve in curves.values() for point in curve]
    right = max(x for x, _ in points) or 1.0
    low, high = min(y for _, y in points), max(y for _, y in points)

    def place(x: float, y: float) -> tuple[float, float]:
        down = (high - y) / (high - low or 1.0)
        return MARGIN + x / right * (WIDTH - 2 * MARGIN), MARGIN + down * (HEIGHT - 2 * MARGIN)

    parts = []
    for i in range(5):
        x, y = i / 4 * right, low + i / 4 * (high - low)
        across, down = place(x, low)[0], place(0, y)[1]
        parts += [
            f'<line x1="{MARGIN}" y1="{down:.1f}" x2="{WIDTH - MARGIN}" y2="{down:.1f}" stroke="#dddddd"/>',
            f'<text x="{MARGIN - 8}" y="{down + 4:.1f}" text-anchor="end">{y:.2f}</text>',
            f'<text x="{across:.1f}" y="{HEIGHT - MARGIN + 20}" text-anchor="middle">{x:.2f}</text>',
        ]
    for row, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[row % len(COLOURS)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in curve))
        at = MARGIN + 18 * row
        parts += [
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>',
            f'<text x="{WIDTH - MARGIN - 8}" y="{at}" text-anchor="end" fill="{colour}">{escape(name)}</text>',
        ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>{"".join(parts)}'
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 16}" text-anchor="middle">million tokens since the stage began</text>'
        f'<text x="{MARGIN}" y="28" font-size="16">{escape(title)}</text></svg>\n'
    )
