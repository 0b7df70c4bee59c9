"""Two checkpoints side by side: what they are, what was measured of them, where their lives part."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from cupola_flows.reports.evaluations import common, evaluations, what_is_missing
from cupola_flows.terminal.text import plain
from cupola_platform.artifacts import Artifact, Manifest
from cupola_platform.errors import ConfigError, CorruptArtifactError, NotFoundError
from cupola_platform.registry import ArtifactRow
from cupola_platform.workspace import SOURCES, Workspace


@dataclass(frozen=True)
class Apart:
    """One thing in which the lives of A and B were set otherwise."""

    stage: str
    setting: str
    a: str
    b: str


def compare_checkpoints(workspace: Workspace, a: Artifact, b: Artifact) -> dict[str, Any]:
    """Plain JSON: identity, evaluation with intervals, settings that differ anywhere in their lives, and parents that
    only one of them has.

    Numbers come from a common evaluation alone, the newest; where there is none, `evaluation` is null and `missing`
    says why and which command makes one.

    Raises:
        ConfigError: one of them is no checkpoint.
    """
    for artifact in (a, b):
        if artifact.kind != "checkpoint":
            raise ConfigError(f"{artifact.id} is of kind {artifact.kind}; two checkpoints can be compared.")
    known = evaluations(workspace)
    both = common(known, [a.digest, b.digest])
    ancestors = [
        {row.digest: f"{row.digest[:12]} {row.kind} {row.stage}" for row in _made_from(workspace, each)}
        for each in (a, b)
    ]
    return {
        "same_evaluation": both is not None,
        "missing": None if both else what_is_missing(known, a.digest, b.digest),
        "settings": [asdict(row) for row in set_apart(workspace, a, b)],
        "checkpoints": [
            {
                "id": each.id,
                "digest": each.digest,
                "stage": each.manifest.stage,
                "recipe": each.manifest.recipe,
                "model": json.loads((each.path / "model.json").read_text()),
                "metrics": each.metrics,
                "evaluation": measured,
                "only_here": [label for digest, label in own.items() if digest not in other],
            }
            for each, measured, own, other in zip(
                (a, b), both or (None, None), ancestors, reversed(ancestors), strict=True
            )
        ],
    }


def set_apart(workspace: Workspace, a: Artifact, b: Artifact) -> list[Apart]:
    """What differs in the settings, seeds, code and source text of two artifacts and of all that they were made from.

    The stages of both lives are held together by name. Empty where all were set alike.
    """
    lives = [_life(workspace, artifact) for artifact in (a, b)]
    rows: list[Apart] = []
    for stage in {**lives[0], **lives[1]}:
        ours, theirs = (life.get(stage) for life in lives)
        if ours and theirs and ours.digest == theirs.digest:
            continue
        described = [_described(ours), _described(theirs)]
        rows += [
            Apart(stage, key, described[0].get(key, ""), described[1].get(key, ""))
            for key in {**described[0], **described[1]}
            if described[0].get(key) != described[1].get(key)
        ]
    return rows


def _life(workspace: Workspace, artifact: Artifact) -> dict[str, Manifest | ArtifactRow]:
    """By stage, what went into an artifact, and itself as the last; a name that comes again is numbered."""
    life: dict[str, Manifest | ArtifactRow] = {}
    for each in [*reversed(_made_from(workspace, artifact)), artifact.manifest]:
        name = each.stage or each.kind
        number = sum(known == name or known.startswith(f"{name} (") for known in life)
        life[f"{name} ({number + 1})" if number else name] = each
    return life


def _made_from(workspace: Workspace, artifact: Artifact) -> list[Manifest | ArtifactRow]:
    """Everything that an artifact was made from, each once, nearest first;
    the row alone where the store has it no more."""
    registry = workspace.registry
    ancestors: dict[str, ArtifactRow] = {}
    for parent in filter(None, map(registry.artifact, artifact.manifest.parents)):
        for row in (parent, *registry.ancestors(parent.digest)):
            ancestors.setdefault(row.digest, row)
    return [_manifest(workspace, row) or row for row in ancestors.values()]


def _manifest(workspace: Workspace, row: ArtifactRow) -> Manifest | None:
    try:
        return workspace.store.manifest(row.digest)
    except (NotFoundError, CorruptArtifactError):
        return None


def _described(made: Manifest | ArtifactRow | None) -> dict[str, str]:
    """Setting to value, and by what code and of which files; nothing of a stage that a life does not have."""
    if made is None:
        return {}
    return dict(_flat(made.config)) | (_beyond_settings(made) if isinstance(made, Manifest) else {})


def _beyond_settings(manifest: Manifest) -> dict[str, str]:
    sources = next((file.blake3[:12] for file in manifest.files if file.path == SOURCES), None)
    return {"code": manifest.code_version[:12]} | ({"source files": sources} if sources else {})


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    elif value is not None:
        yield path, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def print_comparison(comparison: dict[str, Any], console: Console) -> None:
    """The comparison as a table with intervals; without a common evaluation,
    what is missing in the place of numbers."""
    a, b = comparison["checkpoints"]
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("", f"{a['id']} {a['stage']}", f"{b['id']} {b['stage']}"):
        table.add_column(plain(heading))
    rows = {**(_evaluation_rows(a, b) if comparison["same_evaluation"] else {}), **_model_rows(a, b)}
    rows |= _setting_rows(comparison["settings"])
    rows["made from, only here"] = ("\n".join(a["only_here"]), "\n".join(b["only_here"]))
    for heading, (left, right) in rows.items():
        table.add_row(plain(heading), plain(left), plain(right))
    console.print(table)
    if comparison["missing"]:
        console.print(plain(comparison["missing"], "yellow"), soft_wrap=True)


def interval(accuracy: dict[str, Any] | None) -> str:
    """`61.0% [54.1%, 67.5%] of 200`."""
    if not accuracy:
        return ""
    low, high = accuracy["low"], accuracy["high"]
    return f"{accuracy['accuracy']:.1%} [{low:.1%}, {high:.1%}] of {accuracy['total']}"


def _evaluation_rows(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[str, str]]:
    used = [each["evaluation"] for each in (a, b)]
    rows = {"bits per byte": tuple(f"{f['bits_per_byte']:.4f}" for f in used)}
    rows["accuracy"] = tuple(interval(f.get("accuracy")) for f in used)
    for task in sorted({task for f in used for task in f.get("tasks", {})}):
        rows[f"  {task}"] = tuple(interval(f.get("tasks", {}).get(task)) for f in used)
    return {heading: (pair[0], pair[1]) for heading, pair in rows.items()}


def _setting_rows(settings: list[dict[str, str]]) -> dict[str, tuple[str, str]]:
    """Of stages that both lives have; the others are told as what only one was made from."""
    both = {row["stage"] for row in settings if row["a"]} & {row["stage"] for row in settings if row["b"]}
    return {f"{row['stage']}: {row['setting']}": (row["a"], row["b"]) for row in settings if row["stage"] in both}


def _model_rows(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[str, str]]:
    keys = [key for key in a["model"] if a["model"][key] != b["model"].get(key)]
    return {key: (json.dumps(a["model"][key]), json.dumps(b["model"].get(key))) for key in keys}
