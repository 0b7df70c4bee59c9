"""Comparison of two checkpoints: their metrics, the differences with intervals, and a verdict.

A is the current checkpoint and B the candidate: every difference is B minus A.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from cupola_dashboards.queries import metrics, runs
from cupola_dashboards.queries.checkpoints import aliases, evaluations, label
from cupola_dashboards.queries.workspace import workspace
from cupola_flows.reports.comparison import set_apart
from cupola_flows.reports.evaluations import Measured, common, what_is_missing
from cupola_platform.artifacts import Artifact
from cupola_platform.errors import NotFoundError
from cupola_platform.registry import ArtifactRow
from cupola_trainer.scoring.intervals import Z95, difference

Level = Literal["better", "worse", "mixed", "unclear", "none"]
TOLERANCE = 0.05
"""Relative increase in bits per byte accepted with a clear gain on tasks: the promote stage's default."""
EQUAL = 0.0005
"""Relative difference in bits per byte that counts as none."""
ALL_TASKS = "all tasks"


@dataclass(frozen=True)
class Side:
    """One of two checkpoints."""

    row: ArtifactRow
    label: str
    measured: Measured | None
    metrics_file: Path | None

    @property
    def name(self) -> str:
        return self.row.stage or self.row.id


@dataclass(frozen=True)
class Comparison:
    """Two checkpoints, with the metrics of their newest common evaluation, if any."""

    a: Side
    b: Side
    missing: str | None
    """Why there is no common evaluation, and the command that makes one; None if there is one."""

    @property
    def names(self) -> tuple[str, str]:
        """The names of the stages, or the labels if both are from the same stage."""
        return (self.a.name, self.b.name) if self.a.name != self.b.name else (self.a.label, self.b.label)


@dataclass(frozen=True)
class Verdict:
    """The conclusion of a comparison."""

    level: Level
    """B compared with A."""
    headline: str
    detail: str


def compare(a: str, b: str) -> Comparison:
    """Two checkpoints by digest. Raises NotFoundError."""
    known = evaluations()
    both = common(known, [a, b])
    sides = [_side(digest, measured) for digest, measured in zip((a, b), both or (None, None), strict=True)]
    return Comparison(sides[0], sides[1], None if both else what_is_missing(known, a, b))


def _side(digest: str, measured: Measured | None) -> Side:
    row = workspace().registry.artifact(digest)
    if row is None:
        raise NotFoundError(f"No checkpoint {digest[:12]} is registered. Choose one from the table.")
    folder = workspace().root / "work" / row.fingerprint if row.fingerprint else None
    file = metrics.metrics_file(folder) or metrics.metrics_file(_made_in(row))
    return Side(row, label(row, aliases().get(digest, ())), measured, file)


def _made_in(row: ArtifactRow) -> Path | None:
    try:
        return runs.run(row.run_id).work_folder if row.run_id else None
    except NotFoundError:
        return None


def task_table(comparison: Comparison) -> pd.DataFrame:
    """One row per task that both were evaluated on, after a row for all tasks together.

    Returns:
        task; a, a_low, a_high, b, b_low, b_high (shares of 1); difference, low, high (B minus A, 95%); total.
    """
    a, b = (_accuracies(side.measured) for side in (comparison.a, comparison.b))
    rows = []
    for task in [name for name in a if name in b]:
        low, high = difference(b[task]["correct"], b[task]["total"], a[task]["correct"], a[task]["total"], z=Z95)
        change = b[task]["accuracy"] - a[task]["accuracy"]
        sides = [side[task][key] for side in (a, b) for key in ("accuracy", "low", "high")]
        rows.append((task, *sides, change, low, high, b[task]["total"]))
    columns = ["task", "a", "a_low", "a_high", "b", "b_low", "b_high", "difference", "low", "high", "total"]
    return pd.DataFrame(rows, columns=columns)


def task_bars(comparison: Comparison) -> pd.DataFrame:
    """The same for a chart, one row per bar: task, checkpoint, accuracy, low, high."""
    return pd.DataFrame(
        [
            (task, name, value["accuracy"], value["low"], value["high"])
            for name, side in zip(comparison.names, (comparison.a, comparison.b), strict=True)
            for task, value in _accuracies(side.measured).items()
        ],
        columns=["task", "checkpoint", "accuracy", "low", "high"],
    )


def bits_per_byte_change(comparison: Comparison) -> float | None:
    """Relative change: 0.004 means that B needs 0.4% more bits than A. None if one was not measured."""
    a, b = ((side.measured or {}).get("bits_per_byte") for side in (comparison.a, comparison.b))
    return None if a is None or b is None else b / a - 1


def verdict(comparison: Comparison) -> Verdict:
    """Which of the two is better, by what, and how certain that is; level `none` without a common evaluation."""
    name_a, name_b = comparison.names
    if comparison.missing:
        return Verdict("none", f"{name_a} and {name_b} have no common evaluation", comparison.missing)
    change = bits_per_byte_change(comparison)
    table = task_table(comparison)
    tasks = table.iloc[0].to_dict() if len(table) else None
    sentences = [*_tasks_sentence(comparison, tasks), *_bits_sentence(change)]
    level = _level(tasks, change)
    headline = {
        "better": f"{name_b} is better than {name_a}",
        "worse": f"{name_b} is worse than {name_a}",
        "mixed": f"{name_b} is better at tasks but models text worse than {name_a}",
        "unclear": f"No clear difference between {name_b} and {name_a}",
    }[level]
    return Verdict(level, headline, "; ".join(sentences) + "." if sentences else "No metric was measured for both.")


def _level(tasks: dict[str, Any] | None, change: float | None) -> Level:
    if tasks and tasks["high"] < 0:
        return "worse"
    if tasks and tasks["low"] > 0:
        return "mixed" if change is not None and change > TOLERANCE else "better"
    if change is not None and change > TOLERANCE:
        return "worse"
    return "better" if change is not None and change < -TOLERANCE else "unclear"


def _tasks_sentence(comparison: Comparison, tasks: dict[str, Any] | None) -> Iterator[str]:
    if tasks is None:
        return
    points, low, high = (100 * tasks[key] for key in ("difference", "low", "high"))
    name_a, name_b = comparison.names
    sentence = (
        f"{name_b} answers {abs(points):.1f} points {'more' if points >= 0 else 'fewer'} tasks correctly than {name_a}"
    )
    if low > 0:
        yield f"{sentence} (95% interval {low:.0f} to {high:.0f})"
    elif high < 0:
        yield f"{sentence} (95% interval {-high:.0f} to {-low:.0f})"
    else:
        yield f"{sentence}, which may be chance (95% interval of the difference {low:+.0f} to {high:+.0f})"


def _bits_sentence(change: float | None) -> Iterator[str]:
    if change is None:
        return
    if abs(change) < EQUAL:
        yield "bits per byte are the same"
    else:
        yield f"bits per byte {abs(change):.1%} {'worse' if change > 0 else 'better'}"


def differing_responses(comparison: Comparison) -> pd.DataFrame:
    """The prompts stored with the evaluation that only one of the two answered correctly.

    Returns:
        prompt, expected, a, b (the responses), right (`a` or `b`).
    """
    a, b = (
        {each["prompt"]: each for each in (side.measured or {}).get("responses", [])}
        for side in (comparison.a, comparison.b)
    )
    rows = [
        (prompt, a[prompt]["expected"], a[prompt]["response"], b[prompt]["response"], "b" if right(b[prompt]) else "a")
        for prompt in a
        if prompt in b and a[prompt]["expected"] == b[prompt]["expected"] and right(a[prompt]) != right(b[prompt])
    ]
    return pd.DataFrame(rows, columns=["prompt", "expected", "a", "b", "right"])


def shared_responses(comparison: Comparison) -> int:
    """Number of prompts stored for both."""
    a, b = (
        {each["prompt"] for each in (side.measured or {}).get("responses", [])} for side in (comparison.a, comparison.b)
    )
    return len(a & b)


def right(response: dict[str, Any]) -> bool:
    """Whether a response got the full score."""
    return float(response["score"]) >= 1.0


def generations(comparison: Comparison) -> list[tuple[str, str | None, str | None]]:
    """(prompt, A's continuation, B's continuation), in A's order, then the prompts that only B has."""
    a, b = (
        {each["prompt"]: each["completion"] for each in (s.measured or {}).get("generations", [])}
        for s in (comparison.a, comparison.b)
    )
    return [(prompt, a.get(prompt), b.get(prompt)) for prompt in {**a, **b}]


def config_differences(comparison: Comparison) -> pd.DataFrame:
    """Differences in settings, seeds, code and text between the two and all their ancestors: stage, setting, a, b
    (JSON-like text; empty if not set)."""
    opened = workspace()
    a, b = (Artifact(opened.root, opened.store.manifest(s.row.digest)) for s in (comparison.a, comparison.b))
    rows = [(row.stage, row.setting, row.a, row.b) for row in set_apart(opened, a, b)]
    return pd.DataFrame(rows, columns=["stage", "setting", "a", "b"])


def curves(comparison: Comparison) -> pd.DataFrame:
    """The curves of the stages that made the two: step, name, value, checkpoint."""
    frames = [
        metrics.curves(side.metrics_file).assign(checkpoint=name)
        for name, side in zip(comparison.names, (comparison.a, comparison.b), strict=True)
    ]
    return pd.concat(frames, ignore_index=True)


def _accuracies(measured: Measured | None) -> dict[str, dict[str, Any]]:
    if not measured or not measured.get("accuracy"):
        return {}
    tasks: dict[str, dict[str, Any]] = measured.get("tasks", {})
    return {ALL_TASKS: measured["accuracy"], **tasks} if len(tasks) != 1 else {next(iter(tasks)): measured["accuracy"]}
