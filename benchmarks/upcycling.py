"""What re-initialisation buys: the demo's dense model, upcycled with 0, 50 and 100% of the experts drawn anew, each trained on.

.venv/bin/python benchmarks/upcycling.py [--workspace DIR] [--fractions 0,0.5,1] [--steps 240] [--to upcycling.svg]

Runs a recipe made of `tiny`'s first stages, in a workspace where the demo may have run already: what is there is not run
again. Draws the held-out losses over the tokens since upcycling, with the dense model trained on as long beside them.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import yaml

from cupola_flows.recipe import shipped
from cupola_platform.workspace import Workspace

NAME = "upcycling"
WIDTH, HEIGHT, MARGIN = 760, 440, 64
COLOURS = ("#888888", "#1f77b4", "#d9822b", "#2e8b57", "#9467bd", "#b03a48")
Curve = list[tuple[float, float]]


def recipe(fractions: Sequence[float], steps: int, every: int) -> dict[str, Any]:
    """`tiny` up to its dense model, and from there on each way of going on."""
    tiny = yaml.safe_load(shipped()["tiny"].read_text())
    stages = {name: tiny["stages"][name] for name in ("prepare", "pretrain")}
    further = tiny["stages"]["pretrain_moe"] | {"steps": steps, "evaluate_every": every, "evaluate_batches": 16}
    stages["dense"] = further | {"parent": "pretrain", "layout": {"dp": 2}}
    for fraction in fractions:
        part = f"{100 * fraction:.0f}"
        stages[f"upcycle_{part}"] = tiny["stages"]["upcycle"] | {"kind": "upcycle", "reinit_fraction": fraction}
        stages[f"moe_{part}"] = further | {"parent": f"upcycle_{part}"}
    return {"name": NAME, "seed": tiny["seed"], "stages": stages}


def curves(workspace: Workspace, names: Sequence[str]) -> dict[str, Curve]:
    """Tokens trained on, and held-out loss, of each stage's newest checkpoint."""
    found: dict[str, Curve] = {}
    for row in workspace.registry.artifacts("checkpoint", 1000):
        if row.recipe != NAME or row.stage not in names or row.stage in found:
            continue
        batch = row.config["batch"]
        tokens = batch["sequence_length"] * batch["global_batch_size"]
        lines = (workspace.work_folder(row.fingerprint) / "job" / "metrics.jsonl").read_text().splitlines()
        events = [event for event in map(json.loads, lines) if event["event"] == "evaluate"]
        found[row.stage] = [(event["step"] * tokens / 1e6, event["heldout_loss"]) for event in events]
    return {name: found[name] for name in names}


def draw(curves: Mapping[str, Curve], labels: Mapping[str, str]) -> str:
    """The curves as SVG."""
    points = [point for curve in curves.values() for point in curve]
    left, right = 0.0, max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            MARGIN + (x - left) / (right - left) * (WIDTH - 2 * MARGIN),
            MARGIN + (high - y) / (high - low) * (HEIGHT - 2 * MARGIN),
        )

    parts = []
    for i in range(5):
        x, y = left + i / 4 * (right - left), low + i / 4 * (high - low)
        across, down = place(x, low)[0], place(left, y)[1]
        parts += [
            f'<line x1="{MARGIN}" y1="{down:.1f}" x2="{WIDTH - MARGIN}" y2="{down:.1f}" stroke="#dddddd"/>',
            f'<text x="{MARGIN - 8}" y="{down + 4:.1f}" text-anchor="end">{y:.2f}</text>',
            f'<text x="{across:.1f}" y="{HEIGHT - MARGIN + 20}" text-anchor="middle">{x:.2f}</text>',
        ]
    for (name, curve), colour, row in zip(curves.items(), COLOURS, range(len(curves)), strict=False):
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in curve))
        at = MARGIN + 18 * row
        parts += [
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>',
            f'<text x="{WIDTH - MARGIN - 8}" y="{at}" text-anchor="end" fill="{colour}">{escape(labels[name])}</text>',
        ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>{"".join(parts)}'
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 16}" text-anchor="middle">million tokens since upcycling</text>'
        f'<text x="{MARGIN}" y="28" font-size="16">Held-out loss by the share of experts drawn anew</text></svg>\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, default=Path(".cupola"))
    parser.add_argument("--fractions", default="0,0.5,1")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--every", type=int, default=20, help="steps between held-out losses")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as `cupola run` takes it")
    parser.add_argument("--to", type=Path, default=Path("upcycling.svg"))
    options = parser.parse_args()
    fractions = [float(text) for text in options.fractions.split(",")]
    workspace = Workspace.open(options.workspace)
    path = workspace.folder("recipes") / f"{NAME}.yaml"
    path.write_text(json.dumps(recipe(fractions, options.steps, options.every), indent=2))  # YAML without anchors
    overrides = [word for value in options.set for word in ("--set", value)]
    command = [Path(sys.executable).with_name("cupola"), "run", path, "--workspace", options.workspace, *overrides]
    subprocess.run([str(word) for word in command], check=True)
    labels = {"dense": "dense, trained on"} | {f"moe_{100 * f:.0f}": f"{f:.0%} drawn anew" for f in fractions}
    found = curves(workspace, list(labels))
    options.to.write_text(draw(found, labels))
    print("| started from | first held-out loss | last | million tokens |\n|---|---|---|---|")
    for name, curve in found.items():
        print(f"| {labels[name]} | {curve[0][1]:.4f} | {curve[-1][1]:.4f} | {curve[-1][0]:.2f} |")
    print(f"The plot: {options.to}")


if __name__ == "__main__":
    main()
