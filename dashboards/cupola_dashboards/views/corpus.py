"""Corpus: the funnel from raw text to tokens, with what was dropped and why."""

import streamlit as st

from cupola_dashboards import charts
from cupola_dashboards.queries import checkpoints, corpus
from cupola_dashboards.words import NOTHING_YET, guarded, megabytes


@guarded
def page() -> None:
    """One `tokens` artifact, the newest at first."""
    st.title("Corpus", anchor=False)
    rows = {row.digest: row for row in corpus.corpora()}
    if not rows:
        st.info(f"No corpus yet. {NOTHING_YET}")
        return
    labels = {
        digest: f"{checkpoints.label(row)} of {row.recipe}, {row.created:%Y-%m-%d %H:%M}"
        for digest, row in rows.items()
    }
    chosen = st.selectbox("Corpus", list(labels), format_func=labels.__getitem__)
    told = corpus.report(chosen)
    steps, sources = corpus.funnel(told), corpus.sources(told)
    cells = st.columns(5)
    cells[0].metric("Documents read", f"{steps['documents_in'].iloc[0]:,}", border=True)
    cells[1].metric("Documents kept", f"{sources['documents'].sum():,}", border=True)
    cells[2].metric("Text kept", megabytes(sources["bytes"].sum()), border=True)
    cells[3].metric("Tokens", f"{sources['tokens'].sum():,}", border=True)
    cells[4].metric("Bytes per token", f"{told['bytes_per_token']:.2f}", border=True)
    st.subheader("What each step kept", anchor=False)
    st.altair_chart(charts.funnel(steps))
    _reasons(told)
    left, right = st.columns([3, 2])
    with left:
        st.subheader("Sources", anchor=False)
        st.dataframe(
            sources.assign(size=sources["bytes"].map(megabytes)).drop(columns="bytes").rename(columns=str.capitalize),
            hide_index=True,
            column_config={name: st.column_config.NumberColumn(format="localized") for name in ("Documents", "Tokens")},
        )
    with right:
        st.subheader("Languages", anchor=False)
        st.altair_chart(charts.bars(corpus.languages(told).head(12), "language", "bytes", "Bytes"))
    _examples(chosen, list(dict.fromkeys(sources["source"])))


def _reasons(told: dict[str, object]) -> None:
    drops = corpus.drops(told)
    st.subheader("What was dropped, and why", anchor=False)
    if drops.empty:
        st.caption("Nothing was dropped.")
        return
    numbers = st.column_config.NumberColumn(format="localized")
    st.dataframe(
        drops.assign(bytes=drops["bytes"].map(megabytes)).rename(columns=str.capitalize),
        hide_index=True,
        column_config={"Documents": numbers, "Example": st.column_config.TextColumn(width="large")},
    )


def _examples(digest: str, sources: list[str]) -> None:
    st.subheader("Examples", anchor=False)
    with st.container(horizontal=True):
        source = st.selectbox("Source", sources, width=280)
        split = st.segmented_control("Split", ["train", "heldout"], default="train", required=True)
    found = corpus.examples(digest, source, split or "train")
    if found.empty:
        st.caption("No document there.")
    for row in found.itertuples():
        with st.expander(f"`{row.path}`, {row.language or 'unknown'}, {row.tokens:,} tokens"):
            st.code(str(row.text), language=None, wrap_lines=True)
