"""Runs: what is running now, the results of the others, and one run in detail."""

from typing import Any

import pandas as pd
import streamlit as st

from cupola_dashboards import charts
from cupola_dashboards.queries import checkpoints, metrics, runs
from cupola_dashboards.queries.workspace import mlflow_page, prefect_page
from cupola_dashboards.text import NOTHING_YET, STATUSES, ago, guarded, lasting, number, plain, status_column
from cupola_platform.registry import RunRow

LOOK_EVERY = "2s"
AMOUNTS = {"Newest": runs.NEWEST, "Newest 5,000": 5_000, "All": runs.EVERYTHING}
MARKS = {
    "completed": "✓", "reused": "✓", "running": "●", "detached": "●", "failed": "✗", "failed (lost)": "✗",
    "cancelled": "✗", "continued": "→",
}  # fmt: skip


def page() -> None:
    """Show the filters, then the part that refreshes every two seconds."""
    st.title("Runs", anchor=False)
    _summary()
    with st.container(horizontal=True, vertical_alignment="bottom"):
        text = st.text_input("Find", placeholder="Recipe, stage or id", key="find", width=280)
        chosen = st.multiselect("Status", list(STATUSES), key="statuses", placeholder="Any", width=320)
        amount = st.segmented_control("Show", list(AMOUNTS), default="Newest", required=True, key="amount")
        stages = st.toggle("Stages", value=True, key="stages", help="Show the stages of each run below it.")
    rows = AMOUNTS[amount or "Newest"]
    live = LOOK_EVERY if rows == runs.NEWEST else None  # thousands of rows are not sent repeatedly
    st.fragment(_table, run_every=live)(text, chosen, rows, stages)


@st.fragment(run_every=LOOK_EVERY)
@guarded
def _summary() -> None:
    """Show the state at a glance: counts, the champion, and a card for each active run."""
    frame = runs.runs()
    whole = frame[(frame["parent"] == "") & (frame["stage"] == "")]
    counts = whole["status"].value_counts()
    failed = sum(int(counts.get(status, 0)) for status in ("failed", "failed (lost)", "cancelled"))
    cells = st.columns([1, 1, 1, 3])
    cells[0].metric("Running now", int(counts.get("running", 0)), border=True, height="stretch")
    cells[1].metric(
        "Completed", int(counts.get("completed", 0) + counts.get("reused", 0)), border=True, height="stretch"
    )
    cells[2].metric("Failed or cancelled", failed, border=True, height="stretch")
    with cells[3].container(border=True, height="stretch"):
        _champion()
    running = frame[frame["status"] == "running"]
    for _, row in running[running["parent"] == ""].iterrows():
        _card(row, frame[frame["parent"] == row["id"]])


def _champion() -> None:
    champion = checkpoints.champion()
    if champion is None:
        st.caption("Champion")
        st.markdown("No checkpoint has been promoted yet. The stage `promote` moves the alias if the metrics allow it.")
        return
    bits, _, _, _, accuracy = checkpoints.headline(champion.measured)
    st.caption(f"Champion, since {ago(champion.moved)}")
    numbers = [f"{number(bits)} bits per byte"] + ([f"{accuracy} answered correctly"] if accuracy else [])
    st.markdown(
        f"**{plain(champion.row.stage)} `{champion.row.id[:8]}`** of {plain(champion.row.recipe)}  \n"
        f"{', '.join(numbers)}"
    )


def _card(row: pd.Series, stages: pd.DataFrame) -> None:
    """Show one run of a recipe: its stages in order, and the progress of the current one."""
    with st.container(border=True, key=f"card-{row['id']}"):
        done = dict(zip(stages["stage"], stages["status"], strict=True))
        names = list(dict.fromkeys([*row["stages"], *done])) or [row["stage"]]
        finished = sum(done.get(name) in ("completed", "reused") for name in names)
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"**{plain(row['recipe'])}** `{row['id']}`", width="content")
            st.caption(f"{finished} of {len(names)} stages, started {ago(row['started'])}", width="content")
        st.markdown(" ".join(_step(name, done.get(name)) for name in names))
        at_work = stages[stages["status"] == "running"] if len(stages) else row.to_frame().T
        for _, stage in runs.with_progress(at_work).iterrows():
            _gauge(stage)


def _step(name: str, status: str | None) -> str:
    colour = STATUSES.get(status or "", "gray")
    return f":{colour}-badge[{MARKS[status]} {plain(name)}]" if status else f":gray[· {plain(name)}]"


def _gauge(stage: pd.Series) -> None:
    name = plain(stage["stage"] or stage["recipe"])
    if pd.isna(stage["steps"]):
        st.progress(0.0, text=f"**{name}** running for {lasting(stage['seconds'])}")
        return
    parts = [f"**{name}** step {stage['step']:,.0f} of {stage['steps']:,.0f}"]
    if not pd.isna(stage["loss"]):
        parts.append(f"loss {stage['loss']:.3f}")
    if not pd.isna(stage["tokens_per_second"]):
        parts.append(f"{stage['tokens_per_second']:,.0f} tokens/s")
    if not pd.isna(stage["left"]):
        parts.append(f"{lasting(stage['left'])} left")
    st.progress(float(stage["share"]), text=" · ".join(parts))


@guarded
def _table(text: str, statuses: list[str], amount: int, stages: bool) -> None:
    frame = runs.runs(amount)
    if frame.empty:
        st.info(NOTHING_YET)
        return
    shown = _matching(frame, text, statuses, stages)
    st.caption(f"{len(shown):,} of {len(frame):,} rows. Select one to see its details.")
    chosen = _select(runs.with_progress(shown) if len(shown) <= runs.NEWEST else shown)
    if chosen:
        _detail(runs.run(chosen))


def _matching(frame: pd.DataFrame, text: str, statuses: list[str], stages: bool) -> pd.DataFrame:
    """Matching rows, each with the run it belongs to."""
    fits = pd.Series(True, index=frame.index)
    if text:
        words = frame["recipe"] + " " + frame["stage"] + " " + frame["id"] + " " + frame["artifact"].fillna("")
        fits &= words.str.contains(text.strip(), case=False, regex=False)
    if statuses:
        fits &= frame["status"].isin(statuses)
    if not stages:
        fits &= frame["stage"] == ""
    wanted = fits | frame["id"].isin(frame.loc[fits, "parent"])
    return frame[wanted].reset_index(drop=True)


def _select(shown: pd.DataFrame) -> str | None:
    """Show the table, and return the id of the selected row, which persists in the page's address as rows are added."""
    ids = list(shown["id"])
    chosen = st.query_params.get("run")
    start = {"selection": {"rows": [ids.index(chosen)] if chosen in ids else []}}
    event: Any = st.dataframe(
        _cells(shown),
        key=f"runs-{hash(tuple(ids))}",  # a new table whenever rows move, since selections are by position
        hide_index=True,
        height="content" if len(shown) < 12 else 430,
        placeholder="",
        on_select="rerun",
        selection_mode="single-row",
        selection_default=start,
        column_config={
            "status": status_column(),
            "name": st.column_config.TextColumn("Run", width="medium", pinned=True),
            "share": st.column_config.ProgressColumn(
                "Progress", format="percent", min_value=0, max_value=1, width="small"
            ),
            "loss": st.column_config.NumberColumn("Loss", format="%.3f", width="small"),
            "tokens_per_second": st.column_config.NumberColumn("Tokens/s", format="%,.0f", width="small"),
            "started": st.column_config.DatetimeColumn("Started (UTC)", format="YYYY-MM-DD HH:mm"),
            "error": st.column_config.TextColumn("Error", width="large"),
        },
    )
    rows = event.selection.rows
    if rows and rows[0] < len(ids):
        st.query_params["run"] = ids[rows[0]]
        return str(ids[rows[0]])
    st.query_params.pop("run", None)
    return None


def _cells(shown: pd.DataFrame) -> pd.DataFrame:
    names = [
        f"    └ {row.stage}" if row.parent else (f"{row.recipe} / {row.stage}" if row.stage else str(row.recipe))
        for row in shown.itertuples()
    ]
    columns: dict[str, Any] = {"name": names, "status": [[status] for status in shown["status"]]}
    if "share" in shown:
        steps = [
            f"{at:,.0f} / {of:,.0f}" if pd.notna(of) else ""
            for at, of in zip(shown["step"], shown["steps"], strict=True)
        ]
        columns |= {"share": shown["share"], "Step": steps, "loss": shown["loss"]}
        columns |= {"tokens_per_second": shown["tokens_per_second"], "Left": shown["left"].map(lasting)}
    columns |= {"Time": shown["seconds"].map(lasting), "started": shown["started"], "id": shown["id"]}
    columns |= {"Artifact": shown["artifact"].fillna("").str.slice(0, 12)}
    columns |= {"error": shown["error"].fillna("").str.split("\n").str[0]}
    return pd.DataFrame(columns).rename(columns={"id": "Id"})


def _detail(row: RunRow) -> None:
    """Show one run in detail: error and log first, then curves, then links to other servers."""
    with st.container(border=True, key="detail"):
        heading = f"{row.recipe} / {row.stage}" if row.stage else row.recipe
        with st.container(horizontal=True, vertical_alignment="center"):
            st.subheader(plain(heading), anchor=False, width="content")
            st.badge(row.label, color=STATUSES[row.label])  # type: ignore[arg-type]
            for name, address in (
                ("Prefect", prefect_page(row.prefect_flow_run_id)),
                ("MLflow", mlflow_page(row.mlflow_run_id)),
            ):
                if address:
                    st.link_button(f"Open in {name}", address, width="content")
        if row.error:
            st.error(plain(row.error.split("\n")[0]))
        if row.label.startswith("failed") and (log := runs.log_tail(row) or row.error or ""):
            with st.expander("End of the log", expanded=True):
                st.code(log, language=None, wrap_lines=True, height=260)
        _curves(row)
        with st.expander("Settings"):
            st.json(row.config, expanded=1)


def _curves(row: RunRow) -> None:
    file = metrics.metrics_file(runs.work_folder(row.work_folder, row.artifact))
    frame = metrics.curves(file)
    if frame.empty:
        if row.stage:
            st.caption("This stage has no curves.")
        return
    now = metrics.progress(file)
    if now:
        cells = st.columns(5)
        cells[0].metric("Step", f"{now.step:,} / {now.steps:,}")
        cells[1].metric("Loss", number(now.loss))
        cells[2].metric("Tokens/s", number(now.tokens_per_second, ",.0f"))
        cells[3].metric("Time left" if row.status == "running" else "Took", _time(row, now))
        cells[4].metric("Parameters", number(metrics.parameters(file), ",d"))
    first, *others = metrics.drawn_together(metrics.curve_names(frame))
    st.caption(plain(charts.title(first)))
    st.altair_chart(charts.curve(frame, first, height=300), key=f"{first}-{row.id}")
    for start in range(0, len(others), 3):
        for cell, name in zip(st.columns(3), others[start : start + 3], strict=False):
            with cell:
                st.caption(plain(charts.title(name)))
                st.altair_chart(charts.curve(frame, name), key=f"{name}-{row.id}")


def _time(row: RunRow, now: metrics.Progress) -> str:
    if row.status == "running":
        return lasting(now.seconds_left) or "–"
    return lasting((row.ended - row.started).total_seconds()) if row.ended and row.status != "reused" else "–"
