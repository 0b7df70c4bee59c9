"""Annotate: two responses side by side, one key each. Choices are stored in the registry."""

import json

import streamlit as st

from cupola_dashboards.queries import checkpoints
from cupola_dashboards.queries.workspace import workspace
from cupola_dashboards.text import NOTHING_YET, guarded, plain
from cupola_platform.annotation import Pair, export, pairs_of, sides
from cupola_platform.conversation import as_message, normal_tools, words
from cupola_platform.registry import Choice


@guarded
def page() -> None:
    """Show the first pair of an artifact that the annotator has not compared yet."""
    st.title("Annotate", anchor=False)
    rows = {row.digest: row for row in workspace().registry.artifacts("preferences") if row.stage != "annotate"}
    if not rows:
        st.info(f"No preferences yet. {NOTHING_YET}")
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        chosen = st.selectbox(
            "Preferences", list(rows), format_func=lambda digest: checkpoints.label(rows[digest]), width=320
        )
        name = st.text_input("Your name", key="annotator", max_chars=64, width=240).strip()
    if not name:
        st.info("Enter your name. It is stored with each comparison.")
        return
    artifact = workspace().store.get(chosen)
    pairs = pairs_of(artifact.path)
    judged = {word.pair for word in workspace().registry.annotations(chosen, name)}
    left = [pair for pair in pairs if pair["id"] not in judged]
    st.progress(1 - len(left) / max(len(pairs), 1), text=f"{len(pairs) - len(left)} of {len(pairs)} pairs compared")
    if left:
        _compare(chosen, name, left[0])
    else:
        st.success("All pairs are compared.")
    if st.button("Export as preferences", disabled=not judged):
        st.success(f"Exported as artifact {export(workspace(), artifact).id}.")


def _compare(digest: str, name: str, pair: Pair) -> None:
    """Show the prompt, both responses as plain text, and the buttons with their keys."""
    for tool in normal_tools(pair.get("tools")):
        st.caption("tool")
        st.text(json.dumps(tool["function"], ensure_ascii=False))
    for message in pair["messages"]:
        st.caption(plain(message["role"]))
        st.text(words(message))
    first, second = sides(pair)
    for column, side, title in zip(st.columns(2), (first, second), ("Left", "Right"), strict=True):
        with column, st.container(border=True, key=f"response-{title.lower()}"):
            st.text(words(as_message(pair[side])))
    choices: list[tuple[str, str, Choice]] = [
        ("Left is better", "1", "chosen" if first == "chosen" else "rejected"),
        ("Right is better", "2", "chosen" if second == "chosen" else "rejected"),
        ("As good", "0", "tie"),
        ("Skip", "s", "skip"),
    ]
    with st.container(horizontal=True):
        for label, key, choice in choices:
            st.button(
                label,
                key=f"say-{key}",
                shortcut=key,
                on_click=workspace().registry.annotate,
                args=(digest, pair["id"], name, choice),
            )
