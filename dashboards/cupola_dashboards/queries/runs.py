"""Runs of recipes with their stages, progress and errors."""

from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import streamlit as st

from cupola_dashboards.queries import metrics
from cupola_dashboards.queries.workspace import workspace
from cupola_platform.registry import RunRow

NEWEST = 400
"""Rows read again at every refresh: about forty full runs."""
EVERYTHING = 100_000
LOG_LINES = 40
COLUMNS = [
    "id", "parent", "recipe", "stage", "status", "started", "ended", "seconds", "artifact", "error", "prefect",
    "mlflow", "folder", "stages",
]  # fmt: skip


def runs(limit: int = NEWEST) -> pd.DataFrame:
    """The newest runs as a tree: each recipe's run, newest first, followed by its stages in order of start.

    Rows beyond `NEWEST` may be up to half a minute old.

    Returns:
        COLUMNS and done. For a recipe's run, `parent` is empty and `stages` has the planned stages.
    """
    sweep()
    newest = _newest(str(workspace().root), min(limit, NEWEST))
    if limit <= NEWEST or len(newest) < NEWEST:
        return tree(newest)
    history = _history(str(workspace().root), limit)
    return tree(pd.concat([newest, history[~history["id"].isin(newest["id"])]], ignore_index=True))


def tree(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows sorted so that stages follow their run, with `done`, the number of finished stages of a run.

    A stage whose run is not among the rows is listed by itself.
    """
    known = set(frame["id"])
    root = frame["parent"].where(frame["parent"].isin(known), "")
    top = frame["id"].where(root == "", root)
    begun = frame.set_index("id")["started"].reindex(top).set_axis(frame.index)
    order = frame.assign(begun=begun, top=top, below=root != "")
    order = order.sort_values(["begun", "top", "below", "started"], ascending=[False, True, True, True], kind="stable")
    done = frame[frame["status"].isin(["completed", "reused"])].groupby("parent").size()
    order = order.assign(done=order["id"].map(done).fillna(0).astype(int))
    return order.drop(columns=["begun", "top", "below"]).reset_index(drop=True)


def run(identity: str) -> RunRow:
    """One run. Raises NotFoundError."""
    return workspace().registry.run(identity)


def work_folder(folder: Path | None, artifact: str | None) -> Path | None:
    """The work folder of a stage: its run's own, or for a reused artifact the one of its fingerprint."""
    if folder:
        return folder
    row = workspace().registry.artifact(artifact) if artifact else None
    return workspace().root / "work" / row.fingerprint if row and row.fingerprint else None


def with_progress(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with each run's progress: columns step, steps, share, loss, tokens_per_second, left.

    For a recipe's run, step and steps count stages.
    """
    seen = [metrics.progress(metrics.metrics_file(folder)) for folder in frame["folder"]]
    seen = [
        progress or (metrics.Progress(step=row.done, steps=len(row.stages)) if row.stages else None)
        for progress, row in zip(seen, frame.itertuples(), strict=True)
    ]
    columns = {
        "step": [p and p.step for p in seen],
        "steps": [p and p.steps for p in seen],
        "share": [p and p.share for p in seen],
        "loss": [p and p.loss for p in seen],
        "tokens_per_second": [p and p.tokens_per_second for p in seen],
        "left": [p and p.seconds_left for p in seen],
    }
    extended = frame.assign(**{name: pd.to_numeric(pd.Series(v, index=frame.index)) for name, v in columns.items()})
    extended.loc[extended["status"] != "running", "left"] = None
    return extended


def log_tail(row: RunRow, lines: int = LOG_LINES) -> str:
    """The last lines of a stage's log; empty if it has none."""
    if row.work_folder is None:
        return ""
    log = workspace().root / "logs" / f"{row.stage}-{row.work_folder.name[:12]}.log"
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 400 * lines))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


@st.cache_data(ttl=15, show_spinner=False)
def sweep() -> int:
    """Mark runs whose process is gone as failed, and return their number."""
    return len(workspace().registry.sweep_lost_runs())


@st.cache_data(ttl=1, show_spinner=False, max_entries=16)
def _newest(home: str, limit: int) -> pd.DataFrame:
    return _frame(workspace().registry.runs(limit))


@st.cache_data(ttl=30, show_spinner=False, max_entries=4)
def _history(home: str, limit: int) -> pd.DataFrame:
    return _frame(workspace().registry.runs(limit))


def _frame(rows: list[RunRow]) -> pd.DataFrame:
    now = datetime.now(UTC)
    return pd.DataFrame(
        [
            (
                row.id, row.parent_id or "", row.recipe, row.stage, row.label, row.started, row.ended,
                ((row.ended or now) - row.started).total_seconds(), row.artifact, row.error, row.prefect_flow_run_id,
                row.mlflow_run_id, row.work_folder, list(row.config.get("stages", {})) if not row.stage else [],
            )
            for row in rows
        ],
        columns=COLUMNS,
    ).astype({"seconds": float})  # fmt: skip
