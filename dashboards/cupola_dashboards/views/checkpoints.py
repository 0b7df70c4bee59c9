"""Checkpoints: all of them with their metrics, and two side by side to decide which one ships."""

import html
from typing import Any

import pandas as pd
import streamlit as st

from cupola_dashboards import charts, lineage_view
from cupola_dashboards.queries import checkpoints, comparison, metrics
from cupola_dashboards.queries.comparison import Comparison, Side, Verdict
from cupola_dashboards.text import NOTHING_YET, ago, alias_column, guarded, number, plain

SIDES = ("a", "b")
FIRST = 6
"""Curves shown at first."""


@guarded
def page() -> None:
    """Show the table, two of its rows side by side, and the history of the aliases."""
    st.title("Checkpoints", anchor=False)
    frame = checkpoints.checkpoints()
    if frame.empty:
        st.info(f"No checkpoints yet. {NOTHING_YET}")
        return
    _table(frame)
    _compare(frame)
    moves = checkpoints.alias_moves()
    st.subheader("Alias history", anchor=False)
    if moves.empty:
        st.caption("No alias was moved yet.")
    else:
        st.dataframe(
            moves.rename(columns=str.capitalize),
            hide_index=True,
            column_config={
                "Moved": st.column_config.DatetimeColumn("Moved (UTC)", format="YYYY-MM-DD HH:mm"),
                "Reason": st.column_config.TextColumn(width="large"),
            },
        )


def _table(frame: pd.DataFrame) -> None:
    """Show all checkpoints, to sort and filter; two selected rows become A and B."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        text = st.text_input("Find", placeholder="Stage, recipe, id or alias", width=280)
        recipes = st.multiselect("Recipe", sorted(frame["recipe"].unique()), placeholder="Any", width=280)
        measured = st.toggle("Only evaluated", value=False)
    shown = frame
    if text:
        shown = shown[(shown["label"] + " " + shown["recipe"]).str.contains(text.strip(), case=False, regex=False)]
    if recipes:
        shown = shown[shown["recipe"].isin(recipes)]
    if measured:
        shown = shown[shown["bits_per_byte"].notna()]
    digests = list(shown["digest"])
    event: Any = st.dataframe(
        shown.assign(accuracy=100 * shown["accuracy"])[
            ["stage", "aliases", "recipe", "bits_per_byte", "accuracy", "interval", "evaluation", "created", "id"]
        ],
        key=f"checkpoints-{hash(tuple(digests))}",
        hide_index=True,
        height="content" if len(shown) < 9 else 330,
        placeholder="",
        on_select="rerun",
        selection_mode="multi-row",
        column_config={
            "stage": st.column_config.TextColumn("Stage", pinned=True),
            "aliases": alias_column(sorted({alias for aliases in frame["aliases"] for alias in aliases})),
            "recipe": "Recipe",
            "bits_per_byte": st.column_config.NumberColumn(
                "Bits per byte", format="%.4f", help="On held-out text; lower is better."
            ),
            "accuracy": st.column_config.ProgressColumn(
                "Answered correctly", format="%.1f%%", min_value=0, max_value=100
            ),
            "interval": st.column_config.TextColumn("with 95% interval"),
            "evaluation": st.column_config.TextColumn(
                "Evaluation", help="The evaluation behind these metrics; others may use different tasks."
            ),
            "created": st.column_config.DatetimeColumn("Made (UTC)", format="YYYY-MM-DD HH:mm"),
            "id": "Id",
        },
    )
    rows = tuple(row for row in event.selection.rows if row < len(digests))
    if rows != st.session_state.get("selected_rows"):
        st.session_state["selected_rows"] = rows
        if len(rows) == 2:
            older, newer = sorted((digests[row] for row in rows), key=digests.index, reverse=True)
            st.session_state["a"], st.session_state["b"] = older, newer
    st.caption(f"{len(shown):,} of {len(frame):,} checkpoints. Select two rows to compare them, or choose below.")


def _compare(frame: pd.DataFrame) -> None:
    if len(frame) < 2:
        st.caption("To compare, a second checkpoint is needed.")
        return
    labels = dict(zip(frame["digest"], frame["label"], strict=True))
    for side, digest in zip(SIDES, _defaults(frame), strict=True):
        if st.session_state.get(side) not in labels:
            st.session_state[side] = digest
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.selectbox("A: current", list(labels), format_func=labels.__getitem__, key="a")
        st.selectbox("B: candidate", list(labels), format_func=labels.__getitem__, key="b")
        st.button("Swap", on_click=_swap, width="content")
    a, b = st.session_state["a"], st.session_state["b"]
    st.query_params.update({"a": a[:12], "b": b[:12]})
    if a == b:
        st.info("A and B are the same checkpoint. Choose another one.")
        return
    compared = comparison.compare(a, b)
    _verdict(comparison.verdict(compared), compared)
    views = {
        "Evaluation": _evaluation,
        "Curves": _curves,
        "Generations": _generations,
        "Responses that differ": _responses,
        "Settings": _settings,
        "Lineage": _lineage,
    }
    for tab, view in zip(st.tabs(list(views)), views.values(), strict=True):
        with tab:
            view(compared)


def _defaults(frame: pd.DataFrame) -> tuple[str, str]:
    """A and B from the address; by default B is the newest evaluated checkpoint, and A the champion or the one before
    B."""
    a, b = (_starting_with(frame, st.query_params.get(side)) for side in SIDES)
    measured = frame[frame["bits_per_byte"].notna()]
    pool = list((measured if len(measured) > 1 else frame)["digest"])
    champions = [digest for digest, names in zip(frame["digest"], frame["aliases"], strict=True) if "champion" in names]
    b = b or next(digest for digest in pool if digest != a)
    return a or next(digest for digest in [*champions, *pool] if digest != b), b


def _starting_with(frame: pd.DataFrame, prefix: str | None) -> str | None:
    matches = [digest for digest in frame["digest"] if prefix and digest.startswith(prefix)]
    return str(matches[0]) if len(matches) == 1 else None


def _swap() -> None:
    st.session_state["a"], st.session_state["b"] = st.session_state["b"], st.session_state["a"]


def _verdict(verdict: Verdict, compared: Comparison) -> None:
    """Show the verdict, and the numbers behind it."""
    shown = {"better": st.success, "worse": st.error, "mixed": st.warning, "unclear": st.info, "none": st.warning}
    shown[verdict.level](f"**{plain(verdict.headline)}:** {plain(verdict.detail)}")
    if compared.missing:
        return
    cells = st.columns(4)
    bits = [(side.measured or {}).get("bits_per_byte") for side in (compared.a, compared.b)]
    change = comparison.bits_per_byte_change(compared)
    tasks = comparison.task_table(compared)
    cells[0].metric(
        f"Bits per byte, A ({plain(compared.a.name)})", number(bits[0], ".4f"), border=True, height="stretch"
    )
    cells[1].metric(
        f"Bits per byte, B ({plain(compared.b.name)})", number(bits[1], ".4f"), border=True, height="stretch",
        delta_color="inverse", delta=None if change is None else f"{change:+.1%}",
    )  # fmt: skip
    first = tasks.iloc[0] if len(tasks) else None
    cells[2].metric(
        "Answered correctly, A", "–" if first is None else f"{first['a']:.1%}", border=True, height="stretch"
    )
    cells[3].metric(
        "Answered correctly, B", "–" if first is None else f"{first['b']:.1%}", border=True, height="stretch",
        delta=None if first is None else f"{first['difference'] * 100:+.1f} points",
    )  # fmt: skip


def _evaluation(compared: Comparison) -> None:
    table = comparison.task_table(compared)
    if table.empty:
        st.caption("No task was evaluated for both.")
        return
    left, right = st.columns(2)
    with left:
        st.altair_chart(charts.accuracy_bars(comparison.task_bars(compared), compared.names))
    with right:
        st.altair_chart(charts.difference_plot(table))
    name_a, name_b = compared.names
    shown = pd.DataFrame(
        {
            "Task": table["task"],
            name_a: [_interval(row, "a") for _, row in table.iterrows()],
            name_b: [_interval(row, "b") for _, row in table.iterrows()],
            "Difference (95% interval)": [
                f"{100 * row['difference']:+.1f} points ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
                for _, row in table.iterrows()
            ],
            "Clear": ["yes" if row["low"] > 0 or row["high"] < 0 else "no" for _, row in table.iterrows()],
            "Prompts": table["total"],
        }
    )
    st.dataframe(shown, hide_index=True)
    st.caption("Intervals: Wilson for accuracies, Newcombe for differences. Clear: the interval excludes zero.")


def _interval(row: pd.Series, side: str) -> str:
    return f"{row[side]:.1%} ({100 * row[f'{side}_low']:.0f} to {100 * row[f'{side}_high']:.0f})"


def _curves(compared: Comparison) -> None:
    frame = comparison.curves(compared)
    if frame.empty:
        st.caption("Neither stage has curves in this workspace.")
        return
    kinds = [side.row.config.get("kind") for side in (compared.a, compared.b)]
    if kinds[0] != kinds[1]:
        st.caption(
            f"{plain(kinds[0])} and {plain(kinds[1])} minimize different losses: compare the shape of the curves, not "
            "their values."
        )
    names = metrics.curve_names(frame)
    _overlaid(frame, compared, names[:FIRST])
    if names[FIRST:]:
        with st.expander("More curves"):
            _overlaid(frame, compared, names[FIRST:])


def _overlaid(frame: pd.DataFrame, compared: Comparison, names: list[str]) -> None:
    for start in range(0, len(names), 2):
        for cell, name in zip(st.columns(2), names[start : start + 2], strict=False):
            with cell:
                st.caption(plain(charts.title(name)))
                st.altair_chart(charts.compared_curve(frame, name, compared.names))


def _generations(compared: Comparison) -> None:
    pairs = comparison.generations(compared)
    if not pairs:
        st.caption("The evaluation has no continuations.")
    for prompt, a, b in pairs:
        for cell, name, text, side in zip(st.columns(2), compared.names, (a, b), SIDES, strict=True):
            with cell:
                st.caption(f"{side.upper()}: {plain(name)}")
                st.html(_continued(prompt, text))


def _continued(prompt: str, text: str | None) -> str:
    return _preformatted(f"<b>{html.escape(prompt)}</b>{'<i>not asked</i>' if text is None else html.escape(text)}")


def _preformatted(markup: str) -> str:
    style = "white-space:pre-wrap;overflow-wrap:anywhere;font-family:monospace;font-size:0.85rem;margin:0 0 0.6rem"
    return f'<div style="{style}">{markup}</div>'


def _responses(compared: Comparison) -> None:
    table = comparison.differing_responses(compared)
    kept = comparison.shared_responses(compared)
    name_a, name_b = map(plain, compared.names)
    counts = table["right"].value_counts()
    st.markdown(
        f"Of the {kept} prompts kept with both, **{name_b} alone** is right in **{counts.get('b', 0)}**, "
        f"**{name_a} alone** in **{counts.get('a', 0)}**."
    )
    for row in table.itertuples():
        with st.container(border=True):
            st.html(_preformatted(html.escape(str(row.prompt))))
            headings = ("Expected", f"{_mark(row.right == 'a')} A: {name_a}", f"{_mark(row.right == 'b')} B: {name_b}")
            for cell, heading, text in zip(st.columns(3), headings, (row.expected, row.a, row.b), strict=True):
                cell.markdown(heading)
                cell.text(str(text))


def _mark(right: bool) -> str:
    return ":green-badge[right]" if right else ":red-badge[wrong]"


def _settings(compared: Comparison) -> None:
    table = comparison.config_differences(compared)
    if table.empty:
        st.caption("Both have the same settings, seed, code and text in all stages.")
        return
    name_a, name_b = compared.names
    st.dataframe(
        table.rename(columns={"stage": "Stage", "setting": "Setting", "a": f"A: {name_a}", "b": f"B: {name_b}"}),
        hide_index=True,
    )


def _lineage(compared: Comparison) -> None:
    for cell, side, letter in zip(st.columns(2), (compared.a, compared.b), "AB", strict=True):
        with cell:
            st.caption(f"{letter}: {plain(side.label)}, made {ago(side.row.created)}")
            _graph(side)


@guarded
def _graph(side: Side) -> None:
    lineage_view.show(side.row.digest, downwards=True)
