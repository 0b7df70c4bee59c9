"""Checkpoints with their key metrics, evaluations and aliases."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import pandas as pd
import streamlit as st

from cupola_dashboards.queries.workspace import workspace
from cupola_flows.reports.evaluations import MOST, Evaluation, Measured, newest, read_evaluation
from cupola_platform.registry import ArtifactRow

COLUMNS = [
    "digest", "id", "label", "recipe", "stage", "aliases", "bits_per_byte", "accuracy", "low", "high", "interval",
    "evaluation", "created", "size",
]  # fmt: skip


def checkpoints() -> pd.DataFrame:
    """All checkpoints, newest first, with the metrics of the newest evaluation of each: COLUMNS."""
    by: dict[str, Evaluation] = {}
    for evaluation in evaluations():
        by = {**dict.fromkeys(evaluation.measured, evaluation), **by}
    named = aliases()
    rows = [
        (
            row.digest, row.id, label(row, named.get(row.digest, ())), row.recipe, row.stage,
            list(named.get(row.digest, ())),
            *headline(by[row.digest].measured[row.digest] if row.digest in by else None),
            by[row.digest].id if row.digest in by else "", row.created, row.size,
        )
        for row in workspace().registry.artifacts("checkpoint", MOST)
    ]  # fmt: skip
    numbers = dict.fromkeys(("bits_per_byte", "accuracy", "low", "high"), float)
    return pd.DataFrame(rows, columns=COLUMNS).astype(numbers)


def headline(measured: Measured | None) -> tuple[float | None, float | None, float | None, float | None, str]:
    """Bits per byte, accuracy, the ends of its interval, and the accuracy with its interval as text."""
    if not measured:
        return None, None, None, None, ""
    bits: float = measured["bits_per_byte"]
    accuracy = measured.get("accuracy")
    if not accuracy:
        return bits, None, None, None, ""
    return bits, accuracy["accuracy"], accuracy["low"], accuracy["high"], interval_text(accuracy)


def interval_text(accuracy: Mapping[str, float]) -> str:
    """`61.0% (54 to 68)`."""
    return f"{accuracy['accuracy']:.1%} ({accuracy['low'] * 100:.0f} to {accuracy['high'] * 100:.0f})"


def label(row: ArtifactRow, named: tuple[str, ...] = ()) -> str:
    """`sft 3f2a90b1 (champion)`."""
    return f"{row.stage or row.kind} {row.digest[:8]}" + (f" ({', '.join(named)})" if named else "")


def evaluations() -> list[Evaluation]:
    """Newest first; those with missing or damaged files are skipped."""
    read = (_evaluation(row.digest, row) for row in workspace().registry.artifacts("evaluation", MOST))
    return [evaluation for evaluation in read if evaluation]


def aliases() -> dict[str, tuple[str, ...]]:
    """Current aliases by digest."""
    named: dict[str, tuple[str, ...]] = {}
    for alias in workspace().registry.aliases():
        named[alias.digest] = (*named.get(alias.digest, ()), alias.name)
    return named


def alias_moves() -> pd.DataFrame:
    """Every move of every alias, newest first: moved, alias, stage, to, previous, reason."""
    registry = workspace().registry
    rows = []
    for alias in registry.aliases():
        for move in registry.alias_history(alias.name):
            now = registry.artifact(move.digest)
            rows.append(
                (
                    move.moved,
                    alias.name,
                    now.stage if now else "",
                    move.digest[:12],
                    (move.previous or "")[:12],
                    move.reason,
                )
            )
    frame = pd.DataFrame(rows, columns=["moved", "alias", "stage", "to", "previous", "reason"])
    return frame.sort_values("moved", ascending=False, kind="stable", ignore_index=True)


@dataclass(frozen=True)
class Champion:
    """The checkpoint that an alias names, with its metrics."""

    alias: str
    row: ArtifactRow
    reason: str
    moved: datetime
    measured: Measured | None


def champion(alias: str = "champion") -> Champion | None:
    """What `alias` names now; None if nothing was promoted."""
    registry = workspace().registry
    holder = registry.alias(alias)
    row = registry.artifact(holder.digest) if holder else None
    if holder is None or row is None:
        return None
    evaluation = newest(evaluations(), row.digest)
    return Champion(alias, row, holder.reason, holder.moved, evaluation.measured[row.digest] if evaluation else None)


@st.cache_data(show_spinner=False, max_entries=MOST)
def _evaluation(digest: str, _row: ArtifactRow) -> Evaluation | None:
    return read_evaluation(workspace(), _row)
