"""Pairs of responses for people to compare, and the `preferences` artifact made from their choices."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from blake3 import blake3

from cupola_platform import json_lines
from cupola_platform.artifacts import Artifact, fingerprint
from cupola_platform.errors import ConfigError
from cupola_platform.workspace import Workspace

Pair = dict[str, Any]


def pairs_of(folder: Path, split: str = "train") -> list[Pair]:
    """The pairs of a `preferences` artifact that people can compare: with a prompt and two different responses."""
    rows = json_lines.read(folder / f"{split}.jsonl")
    return [row for row in rows if row.get("messages") and row.get("chosen") != row.get("rejected")]


def sides(pair: Pair) -> tuple[str, str]:
    """Which response is shown on the left and which on the right, drawn by the pair's id so that neither side is
    favoured."""
    swapped = blake3(str(pair["id"]).encode()).digest(1)[0] % 2
    return ("rejected", "chosen") if swapped else ("chosen", "rejected")


def export(workspace: Workspace, source: Artifact) -> Artifact:
    """Publish people's choices as a `preferences` artifact whose parent is the annotated one.

    Each pair is decided by majority; ties and skips are left out. Training and held-out pairs stay separate.

    Raises:
        ConfigError: the artifact is of another kind, or no training pair was decided.
    """
    if source.manifest.kind != "preferences":
        raise ConfigError(
            f"{source.id} is a {source.manifest.kind} artifact, not preferences. Name a preferences artifact."
        )
    votes: dict[str, Counter[str]] = {}
    said = workspace.registry.annotations(source.digest)
    for word in said:
        votes.setdefault(word.pair, Counter())[word.choice] += 1
    splits: dict[str, list[Pair]] = {}
    undecided = 0
    for split in ("train", "heldout"):
        splits[split] = []
        for pair in pairs_of(source.path, split):
            counts = votes.get(pair["id"], Counter())
            if counts["chosen"] == counts["rejected"]:
                undecided += pair["id"] in votes
            else:
                splits[split].append(_decided(pair, counts))
    if not splits["train"]:
        raise ConfigError(
            f"No training pair of {source.id} is decided yet. Compare some on the console's Annotate page."
        )
    words = [[word.pair, word.annotator, word.choice] for word in said]
    mark = fingerprint({"annotations": words}, [source.digest], "annotation-1")
    folder = workspace.work_folder(mark) / "preferences"
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        json_lines.write(folder / f"{split}.jsonl", rows)
    report = {
        "pairs": {split: len(rows) for split, rows in splits.items()},
        "undecided": undecided,
        "annotators": dict(Counter(word.annotator for word in said)),
        "agreement": sum(max(row["votes"].values()) for rows in splits.values() for row in rows)
        / sum(sum(row["votes"].values()) for rows in splits.values() for row in rows),
    }
    (folder / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    metrics = {f"{split}_pairs": float(len(rows)) for split, rows in splits.items()} | {
        "agreement": report["agreement"]
    }
    return workspace.publish(
        folder, kind="preferences", parents=[source], stage="annotate", fingerprint=mark, metrics=metrics
    )


def _decided(pair: Pair, counts: Counter[str]) -> Pair:
    """The pair with the majority's response as chosen, and the votes for each side."""
    best, other = ("chosen", "rejected") if counts["chosen"] > counts["rejected"] else ("rejected", "chosen")
    scores = {"chosen_score": float(counts[best]), "rejected_score": float(counts[other])}
    votes = {"chosen": counts[best], "rejected": counts[other]}
    return {**pair, "chosen": pair[best], "rejected": pair[other], **scores, "votes": votes}
