"""Corpus: the funnel from raw text to tokens, with what was dropped and why."""

from typing import Any

import pandas as pd
import streamlit as st

from cupola_dashboards import charts
from cupola_dashboards.queries import checkpoints, corpus
from cupola_dashboards.text import NOTHING_YET, guarded, megabytes, plain

BIGGEST = 15
"""Maximum rows of a chart."""


@guarded
def page() -> None:
    """Show one `tokens` artifact, by default the newest."""
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
    report = corpus.report(chosen)
    steps, sources = corpus.funnel(report), corpus.sources(report)
    cells = st.columns(5)
    cells[0].metric("Documents read", f"{steps['documents_in'].iloc[0]:,}", border=True)
    cells[1].metric("Documents kept", f"{sources['documents'].sum():,}", border=True)
    cells[2].metric("Text kept", megabytes(sources["bytes"].sum()), border=True)
    cells[3].metric("Tokens", f"{sources['tokens'].sum():,}", border=True)
    cells[4].metric("Bytes per token", f"{report['bytes_per_token']:.2f}", border=True)
    st.subheader("What each step kept", anchor=False)
    st.altair_chart(charts.funnel(steps))
    _reasons(report)
    edits = corpus.edits(report)
    if not edits.empty:
        st.subheader("What was changed", anchor=False)
        st.altair_chart(charts.bars(edits, "change", "count", "Times"))
    _sources(report, sources)
    _text(report)
    _duplicates(report)
    _examples(chosen, list(dict.fromkeys(sources["source"])))
    st.download_button("Download as one page", corpus.page(chosen), f"corpus-{chosen[:12]}.html", "text/html")


def _reasons(report: dict[str, Any]) -> None:
    drops = corpus.drops(report)
    st.subheader("What was dropped, and why", anchor=False)
    if drops.empty:
        st.caption("Nothing was dropped.")
        return
    st.altair_chart(charts.bars(drops.head(BIGGEST), "reason", "documents", "Documents"))
    for step, rows in drops.groupby("step", sort=False):
        with st.expander(f"{plain(step)}: {rows['documents'].sum():,} documents, {megabytes(rows['bytes'].sum())}"):
            for row in rows.itertuples():
                st.markdown(f"**{plain(row.reason)}**, {row.documents:,} documents, {megabytes(row.bytes)}")
                st.code("\n".join(row.examples), language=None, wrap_lines=True)


def _sources(report: dict[str, Any], sources: pd.DataFrame) -> None:
    st.subheader("Sources", anchor=False)
    left, right = st.columns(2)
    with left:
        st.altair_chart(charts.funnel(corpus.of_sources(report).head(BIGGEST), "source"))
        st.dataframe(
            sources.assign(size=sources["bytes"].map(megabytes)).drop(columns="bytes").rename(columns=str.capitalize),
            hide_index=True,
            column_config={name: st.column_config.NumberColumn(format="localized") for name in ("Documents", "Tokens")},
        )
    with right:
        st.caption("Documents that each step kept")
        st.altair_chart(charts.shares(corpus.survival(report), "step", "source", "kept"))
        st.caption("Mixture: what training reads, beside what there is")
        st.altair_chart(charts.grouped(corpus.mixture(report), "source", "of", "share", "Share", ".0%"))


def _text(report: dict[str, Any]) -> None:
    left, middle, right = st.columns(3)
    with left:
        st.subheader("Languages", anchor=False)
        st.altair_chart(charts.bars(corpus.languages(report).head(BIGGEST), "language", "bytes", "Bytes"))
    with middle:
        st.subheader("Lengths", anchor=False)
        st.altair_chart(charts.columns(corpus.lengths(report), "from", "documents", "Documents", "Tokens, from"))
    with right:
        st.subheader("Compression", anchor=False)
        ratios = corpus.compression(report)
        shown = ratios[ratios["language"].isin(list(dict.fromkeys(ratios["language"]))[:BIGGEST])]
        heading = f"Bytes a token, of {report['compression']['text']} text"
        st.altair_chart(charts.grouped(shown, "language", "vocabulary", "bytes_per_token", heading, ".2f"))


def _duplicates(report: dict[str, Any]) -> None:
    clusters = corpus.clusters(report)
    if not clusters:
        return
    st.subheader("Duplicates", anchor=False)
    for (step, (sizes, largest)), column in zip(clusters.items(), st.columns(len(clusters)), strict=True):
        with column:
            st.caption(f"Clusters of {plain(step)}")
            st.altair_chart(charts.columns(sizes, "size", "clusters", "Clusters", "Documents in a cluster"))
            st.dataframe(
                largest.rename(columns={"document": "Kept document", "documents": "Documents"}), hide_index=True
            )


def _examples(digest: str, sources: list[str]) -> None:
    st.subheader("Examples", anchor=False)
    with st.container(horizontal=True):
        source = st.selectbox("Source", sources, width=280)
        split = st.segmented_control("Split", ["train", "heldout"], default="train", required=True)
    examples = corpus.examples(digest, source, split or "train")
    if examples.empty:
        st.caption("No document there.")
    for row in examples.itertuples():
        with st.expander(f"{plain(row.path)}, {plain(row.language or 'unknown')}, {row.tokens:,} tokens"):
            st.code(str(row.text), language=None, wrap_lines=True)
