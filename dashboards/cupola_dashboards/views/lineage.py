"""Lineage: an artifact's ancestry down to the source files, and what was made from it."""

import pandas as pd
import streamlit as st

from cupola_dashboards import lineage_view
from cupola_dashboards.queries import checkpoints, lineage
from cupola_dashboards.text import NOTHING_YET, guarded, megabytes, short
from cupola_platform.registry import ArtifactRow


@guarded
def page() -> None:
    """Choose and show an artifact, by default the champion or else the newest checkpoint."""
    st.title("Lineage", anchor=False)
    rows = {row.digest: row for row in lineage.artifacts()}
    if not rows:
        st.info(NOTHING_YET)
        return
    named = checkpoints.aliases()
    labels = {
        digest: f"{checkpoints.label(row, named.get(digest, ()))}, {row.kind} of {row.recipe or 'no recipe'}"
        for digest, row in rows.items()
    }
    if st.session_state.get("artifact") not in labels:
        st.session_state["artifact"] = _first(rows)
    chosen = st.selectbox("Artifact", list(labels), format_func=labels.__getitem__, key="artifact")
    st.query_params["artifact"] = chosen[:12]
    row = rows[chosen]
    with st.container(border=True):
        graph = lineage_view.show(chosen)
    cells = st.columns(4)
    cells[0].metric("Ancestors", len(graph.nodes) - 1, border=True)
    cells[1].metric("Source files", f"{sum(source.files for _, source in graph.sources):,}", border=True)
    cells[2].metric("Source text", megabytes(sum(source.bytes for _, source in graph.sources)), border=True)
    cells[3].metric("Size", megabytes(row.size), border=True)
    _tables(graph, chosen)


def _first(rows: dict[str, ArtifactRow]) -> str:
    asked = st.query_params.get("artifact")
    if asked and (artifact := lineage.artifact(asked)).digest in rows:
        return artifact.digest
    champion = checkpoints.champion()
    if champion and champion.row.digest in rows:
        return champion.row.digest
    return next((digest for digest, row in rows.items() if row.kind == "checkpoint"), next(iter(rows)))


def _tables(graph: lineage.Graph, chosen: str) -> None:
    nodes = pd.DataFrame(
        [
            (
                node.stage,
                node.kind,
                node.id,
                ", ".join(f"{name} {short(value)}" for name, value in node.metrics.items()),
            )
            for node in graph.nodes.values()
        ],
        columns=["Stage", "Kind", "Id", "Numbers"],
    )
    sources = pd.DataFrame(
        [(source.name, source.files, megabytes(source.bytes)) for _, source in graph.sources],
        columns=["Source", "Files", "Size"],
    )
    left, right = st.columns([3, 2])
    left.caption("Made from")
    left.dataframe(nodes, hide_index=True)
    if len(sources):
        right.caption("Text sources")
        right.dataframe(sources, hide_index=True)
    children = lineage.made_from(chosen)
    right.caption("Used by")
    if len(children):
        right.dataframe(children.drop(columns="created").rename(columns=str.capitalize), hide_index=True)
    else:
        right.caption("Nothing yet.")
