"""Lineage graphs. Streamlit lays them out in the browser, without loading anything from outside."""

import streamlit as st

from cupola_dashboards.queries.lineage import Graph, ancestry
from cupola_dashboards.text import megabytes
from cupola_platform.workspace import LineageNode

COLOURS = {
    "tokens": "#b5502d",
    "checkpoint": "#2f6fb5",
    "conversations": "#8a5cb8",
    "preferences": "#b03a8a",
    "evaluation": "#2e8b6f",
    "promotion": "#7a7a2c",
}
OTHER = "#7a746d"
SHOWN = {
    "final_heldout_loss": "held-out loss {:.3f}",
    "documents_kept": "{:,.0f} documents",
    "train_tokens": "{:,.0f} tokens",
    "train_conversations": "{:,.0f} conversations",
    "train_pairs": "{:,.0f} pairs",
    "parameters": "{:,.0f} parameters",
}
"""Metrics shown in a box, with their formats. A box shows the first two that the artifact has."""


def show(digest: str, *, downwards: bool = False) -> Graph:
    """Draw an artifact's ancestry. Raises NotFoundError."""
    graph = ancestry(digest)
    st.graphviz_chart(
        dot(graph, dark=st.context.theme.type == "dark", downwards=downwards),
        width="stretch" if len(graph.nodes) > 5 else "content",
    )
    return graph


def dot(graph: Graph, *, dark: bool = False, downwards: bool = False) -> str:
    """The graph in the DOT language: sources first, the root with a thick frame."""
    ink = "#eae6e1" if dark else "#1c1b1a"
    lines = [
        "digraph lineage {",
        f'rankdir={"TB" if downwards else "LR"}; bgcolor="transparent"; nodesep=0.25; ranksep=0.45;',
        'node [shape=box, style="rounded,filled", fontname="Source Sans, sans-serif", fontsize=12];',
        'node [fontcolor="white", color="transparent", margin="0.16,0.09"];',
        f'edge [color="{ink}99", arrowsize=0.7];',
    ]
    for digest, node in graph.nodes.items():
        frame = f', color="{ink}", penwidth=2.2' if digest == graph.root else ""
        lines.append(f'"{digest}" [label="{_label(node)}", fillcolor="{COLOURS.get(node.kind, OTHER)}"{frame}];')
    for tokens, source in graph.sources:
        name = f"{tokens}/{source.name}"
        text = (
            f"{_escaped(source.name)}\\n{source.files:,} {'file' if source.files == 1 else 'files'}, "
            f"{megabytes(source.bytes)}"
        )
        lines.append(f'"{_escaped(name)}" [label="{text}", style="rounded", color="{ink}88", fontcolor="{ink}"];')
        lines.append(f'"{_escaped(name)}" -> "{tokens}";')
    lines += [f'"{parent}" -> "{child}";' for parent, child in graph.edges]
    return "\n".join([*lines, "}"])


def _label(node: LineageNode) -> str:
    numbers = [form.format(node.metrics[name]) for name, form in SHOWN.items() if name in node.metrics][:2]
    first = node.stage or node.kind
    return "\\n".join(_escaped(line) for line in (first, f"{node.kind} {node.digest[:8]}", *numbers))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
