"""Two checkpoints side by side: models, evaluations, and where their lineages differ."""

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
    """One setting that differs between the lineages of A and B."""

    stage: str
    setting: str
    a: str
    b: str


def compare_checkpoints(workspace: Workspace, a: Artifact, b: Artifact) -> dict[str, Any]:
    """Plain JSON: identities, evaluation with intervals, settings that differ anywhere in the lineages, and ancestors
    that only one of them has.

    Numbers come only from the newest common evaluation. Without one, `evaluation` is null and `missing` says why and
    which command makes one.

    Raises:
        ConfigError: one of them is not a checkpoint.
    """
    for artifact in (a, b):
        if artifact.kind != "checkpoint":
            raise ConfigError(
                f"{artifact.id} is of kind {artifact.kind}, not a checkpoint. See: cupola artifacts --kind checkpoint"
            )
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
    """Differences in settings, seeds, code and source text between two artifacts and all their ancestors.

    Stages are matched by name. Empty if nothing differs.
    """
    lineages = [_lineage(workspace, artifact) for artifact in (a, b)]
    rows: list[Apart] = []
    for stage in {**lineages[0], **lineages[1]}:
        ours, theirs = (lineage.get(stage) for lineage in lineages)
        if ours and theirs and ours.digest == theirs.digest:
            continue
        described = [_described(ours), _described(theirs)]
        rows += [
            Apart(stage, key, described[0].get(key, ""), described[1].get(key, ""))
            for key in {**described[0], **described[1]}
            if described[0].get(key) != described[1].get(key)
        ]
    return rows


def _lineage(workspace: Workspace, artifact: Artifact) -> dict[str, Manifest | ArtifactRow]:
    """The ancestors of an artifact by stage, with the artifact itself last; repeated names are numbered."""
    lineage: dict[str, Manifest | ArtifactRow] = {}
    for each in [*reversed(_made_from(workspace, artifact)), artifact.manifest]:
        name = each.stage or each.kind
        number = sum(known == name or known.startswith(f"{name} (") for known in lineage)
        lineage[f"{name} ({number + 1})" if number else name] = each
    return lineage


def _made_from(workspace: Workspace, artifact: Artifact) -> list[Manifest | ArtifactRow]:
    """All ancestors of an artifact, each once, nearest first: the manifest, or the registry's row if the store no
    longer has it."""
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
    """Settings, code version and source files of an artifact as text; empty for None."""
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
    """Print the comparison as a table; without a common evaluation, what is missing instead of numbers."""
    a, b = comparison["checkpoints"]
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("", f"{a['id']} {a['stage']}", f"{b['id']} {b['stage']}"):
        table.add_column(plain(heading))
    rows = {**(_evaluation_rows(a, b) if comparison["same_evaluation"] else {}), **_model_rows(a, b)}
    rows |= _setting_rows(comparison["settings"])
    rows["only in this lineage"] = ("\n".join(a["only_here"]), "\n".join(b["only_here"]))
    for heading, (left, right) in rows.items():
        table.add_row(plain(heading), plain(left), plain(right))
    console.print(table)
    if comparison["missing"]:
        console.print(plain(comparison["missing"], "yellow"), soft_wrap=True)


def interval(accuracy: dict[str, Any] | None) -> str:
    """Accuracy with its interval, such as `61.0% [54.1%, 67.5%] of 200`."""
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
    """Settings of stages in both lineages; other stages are listed as `only_here`."""
    both = {row["stage"] for row in settings if row["a"]} & {row["stage"] for row in settings if row["b"]}
    return {f"{row['stage']}: {row['setting']}": (row["a"], row["b"]) for row in settings if row["stage"] in both}


def _model_rows(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[str, str]]:
    keys = [key for key in a["model"] if a["model"][key] != b["model"].get(key)]
    return {key: (json.dumps(a["model"][key]), json.dumps(b["model"].get(key))) for key in keys}
