"""Evaluations of checkpoints, and which of their numbers can be compared.

Two checkpoints have a common evaluation if one evaluation measured both, or if two did with the same held-out text,
tasks and settings. Without one there is no verdict, whatever the numbers are.
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
"""How many of the newest evaluations are read."""
DECIDE = {
    "max_heldout_tokens": "the amount of text",
    "window": "the context of a held-out loss",
    "max_tasks": "the number of tasks",
    "max_new_tokens": "the length of a response",
}
"""Settings of an evaluation that its numbers depend on, in words."""

Measured = Mapping[str, Any]
"""One checkpoint's entry in `results.json`, plus "name", its name in the evaluation."""


@dataclass(frozen=True)
class Basis:
    """Data and settings of an evaluation. Numbers with the same basis can be compared."""

    tokens: str | None
    """Digest of the artifact with the held-out text."""
    conversations: str | None
    """Digest of the artifact with the held-out tasks."""
    settings: tuple[Any, ...]
    """Values of the settings in `DECIDE`."""

    def differences(self, other: "Basis") -> list[str]:
        """What differs between the two, in words."""
        pairs = [
            ("the held-out text", self.tokens, other.tokens),
            ("the tasks", self.conversations, other.conversations),
            *zip(DECIDE.values(), self.settings, other.settings, strict=True),
        ]
        return [name for name, ours, theirs in pairs if ours != theirs]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: its basis, and the measurements of each checkpoint by digest."""

    digest: str
    created: datetime
    basis: Basis
    measured: Mapping[str, Measured]

    @property
    def id(self) -> str:
        return self.digest[:12]


def read_evaluation(workspace: Workspace, row: ArtifactRow) -> Evaluation | None:
    """Read one evaluation; None if its files are missing or corrupt."""
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
    """All readable evaluations, newest first."""
    read = (read_evaluation(workspace, row) for row in workspace.registry.artifacts("evaluation", MOST))
    return [evaluation for evaluation in read if evaluation]


def common(known: Iterable[Evaluation], digests: Sequence[str]) -> list[Measured] | None:
    """The newest measurements of these checkpoints on the same text and tasks; None if there are none.

    Args:
        known: newest first.
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
    """Why two checkpoints have no common evaluation, and the command that makes one."""
    one, other = newest(known, a), newest(known, b)
    if one and other:
        parted = _listed(one.basis.differences(other.basis))
        why = f"evaluations {one.id} and {other.id}, which measured them, differ in {parted}"
    elif one or other:
        why = f"{(b if one else a)[:12]} was never evaluated"
    else:
        why = "neither was ever evaluated"
    return f"No verdict: {why}. Evaluate both with: {command(a, b)}"


def command(*digests: str) -> str:
    """The command that evaluates checkpoints together."""
    return f"cupola checkpoint evaluate {' '.join(digest[:12] for digest in digests)}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
