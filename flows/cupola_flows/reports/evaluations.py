"""What evaluations measured of which checkpoints, and whose numbers can be held against each other.

Two checkpoints have a common evaluation where one measured both, or two did on the same held-out text and tasks, as
long and as many of them. Without one there is no verdict, whatever the numbers are.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cupola_platform.errors import CorruptArtifactError, NotFoundError
from cupola_platform.registry import ArtifactRow
from cupola_platform.workspace import Workspace

MOST = 2_000
"""Newest evaluations that are looked at."""
DECIDE = {
    "max_heldout_tokens": "the amount of text",
    "window": "the context of a held-out loss",
    "max_tasks": "the number of tasks",
    "max_new_tokens": "the length of a response",
}
"""Settings of an evaluation that decide its numbers."""

Measured = Mapping[str, Any]
"""One checkpoint's entry in `results.json`, and "name", what the evaluation called it."""


@dataclass(frozen=True)
class Basis:
    """What an evaluation measured with: of equal ones, the numbers can be compared."""

    tokens: str | None
    """Digest of the artifact whose held-out text it read."""
    conversations: str | None
    """Digest of the artifact whose held-out tasks it asked."""
    settings: tuple[Any, ...]
    """Values of `DECIDE`."""

    def differences(self, other: "Basis") -> list[str]:
        """In words, what two of them do not share."""
        pairs = [
            ("the held-out text", self.tokens, other.tokens),
            ("the tasks", self.conversations, other.conversations),
            *zip(DECIDE.values(), self.settings, other.settings, strict=True),
        ]
        return [name for name, ours, theirs in pairs if ours != theirs]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: what it measured of each checkpoint, by digest, and with what."""

    digest: str
    created: datetime
    basis: Basis
    measured: Mapping[str, Measured]

    @property
    def id(self) -> str:
        return self.digest[:12]


def read_evaluation(workspace: Workspace, row: ArtifactRow) -> Evaluation | None:
    """One evaluation; none where its files are gone or torn."""
    try:
        results = json.loads((workspace.store.get(row.digest).path / "results.json").read_text(encoding="utf-8"))
    except (NotFoundError, CorruptArtifactError, OSError, ValueError):
        return None
    kinds = {parent.kind: parent.digest for parent in workspace.registry.parents(row.digest)}
    settings = tuple(row.config.get(name) for name in DECIDE)
    measured = {entry["digest"]: {**entry, "name": name} for name, entry in results["checkpoints"].items()}
    return Evaluation(
        row.digest, row.created, Basis(kinds.get("tokens"), kinds.get("conversations"), settings), measured
    )


def evaluations(workspace: Workspace) -> list[Evaluation]:
    """Newest first."""
    read = (read_evaluation(workspace, row) for row in workspace.registry.artifacts("evaluation", MOST))
    return [evaluation for evaluation in read if evaluation]


def common(known: Iterable[Evaluation], digests: Sequence[str]) -> list[Measured] | None:
    """The newest numbers of these checkpoints that are about the same text and tasks; none where there are no such.

    Args:
        found: newest first.
    """
    together: dict[Basis, dict[str, Measured]] = {}
    for evaluation in known:
        seen = together.setdefault(evaluation.basis, {})
        seen |= {digest: measured for digest, measured in evaluation.measured.items() if digest not in seen}
    whole = (seen for seen in together.values() if all(digest in seen for digest in digests))
    return next(([seen[digest] for digest in digests] for seen in whole), None)


def newest(known: Iterable[Evaluation], digest: str) -> Evaluation | None:
    """The newest evaluation that measured a checkpoint."""
    return next((evaluation for evaluation in known if digest in evaluation.measured), None)


def what_is_missing(known: Sequence[Evaluation], a: str, b: str) -> str:
    """Why two checkpoints without a common evaluation have none, and the command that makes it."""
    one, other = newest(known, a), newest(known, b)
    if one and other:
        parted = _listed(one.basis.differences(other.basis))
        why = f"evaluations {one.id} and {other.id}, which measured them, differ in {parted}"
    elif one or other:
        why = f"{(b if one else a)[:12]} was never evaluated"
    else:
        why = "neither was ever evaluated"
    return f"No verdict: {why}. Measure both alike with: {command(a, b)}"


def command(*digests: str) -> str:
    """What a person types to measure checkpoints alike."""
    return f"cupola checkpoint evaluate {' '.join(digest[:12] for digest in digests)}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
