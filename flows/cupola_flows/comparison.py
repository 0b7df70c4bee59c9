"""Two checkpoints side by side: what they are, what was measured of them, where their lives part."""

import json
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from cupola_platform.artifacts import Artifact
from cupola_platform.errors import ConfigError, CorruptArtifactError, NotFoundError
from cupola_platform.workspace import LineageNode, Workspace


def compare_checkpoints(workspace: Workspace, a: Artifact, b: Artifact) -> dict[str, Any]:
    """Plain JSON: identity, evaluation with intervals, and parents that only one of them has.

    Numbers come from the newest evaluation that measured both; else from each one's newest, and `same_evaluation` is
    false: they may be about different text.

    Raises:
        ConfigError: one of them is no checkpoint.
    """
    for artifact in (a, b):
        if artifact.kind != "checkpoint":
            raise ConfigError(f"{artifact.id} is of kind {artifact.kind}; two checkpoints can be compared.")
    evaluations: list[dict[str, Any]] = list(_evaluations(workspace))
    both = next((found for found in evaluations if a.digest in found and b.digest in found), None)
    measured: list[dict[str, Any]] = [both or next((f for f in evaluations if each.digest in f), {}) for each in (a, b)]
    ancestors = [_ancestors(workspace.lineage(each)) for each in (a, b)]
    return {
        "same_evaluation": both is not None,
        "checkpoints": [
            {
                "id": each.id,
                "digest": each.digest,
                "stage": each.manifest.stage,
                "recipe": each.manifest.recipe,
                "model": json.loads((each.path / "model.json").read_text()),
                "metrics": each.metrics,
                "evaluation": found.get(each.digest),
                "only_here": [label for digest, label in own.items() if digest not in other],
            }
            for each, found, own, other in zip((a, b), measured, ancestors, reversed(ancestors), strict=True)
        ],
    }


def print_comparison(comparison: dict[str, Any], console: Console) -> None:
    """The comparison as a table, its intervals, and a warning where the texts may differ."""
    a, b = comparison["checkpoints"]
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("", f"{a['id']} {a['stage']}", f"{b['id']} {b['stage']}"):
        table.add_column(heading)
    rows = {**_evaluation_rows(a, b), **_model_rows(a, b)}
    for heading, (left, right) in rows.items():
        table.add_row(heading, left, right)
    table.add_row("made from, only here", "\n".join(a["only_here"]), "\n".join(b["only_here"]))
    console.print(table)
    if not comparison["same_evaluation"]:
        console.print("No evaluation measured both: the numbers may be about different text.", style="yellow")


def interval(accuracy: dict[str, Any] | None) -> str:
    """`61.0% [54.1%, 67.5%] of 200`."""
    if not accuracy:
        return ""
    low, high = accuracy["low"], accuracy["high"]
    return f"{accuracy['accuracy']:.1%} [{low:.1%}, {high:.1%}] of {accuracy['total']}"


def _evaluation_rows(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[str, str]]:
    found = [each["evaluation"] or {} for each in (a, b)]
    rows = {"bits per byte": tuple(f"{f['bits_per_byte']:.4f}" if f else "" for f in found)}
    rows["accuracy"] = tuple(interval(f.get("accuracy")) for f in found)
    for task in sorted({task for f in found for task in f.get("tasks", {})}):
        rows[f"  {task}"] = tuple(interval(f.get("tasks", {}).get(task)) for f in found)
    return {heading: (pair[0], pair[1]) for heading, pair in rows.items()}


def _model_rows(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[str, str]]:
    keys = [key for key in a["model"] if a["model"][key] != b["model"].get(key)]
    return {key: (_short(a["model"][key]), _short(b["model"].get(key))) for key in keys}


def _short(value: object) -> str:
    return json.dumps(value)


def _evaluations(workspace: Workspace) -> Iterator[dict[str, Any]]:
    """What each evaluation measured, by checkpoint digest, newest first."""
    for row in workspace.registry.artifacts("evaluation", 100):
        try:
            results = json.loads((workspace.resolve(row.digest).path / "results.json").read_text())
        except (NotFoundError, CorruptArtifactError, OSError):
            continue
        yield {entry["digest"]: entry for entry in results["checkpoints"].values()}


def _ancestors(node: LineageNode) -> dict[str, str]:
    found: dict[str, str] = {}
    for parent in node.parents:
        found[parent.digest] = f"{parent.id} {parent.kind} {parent.stage}"
        found |= _ancestors(parent)
    return found
