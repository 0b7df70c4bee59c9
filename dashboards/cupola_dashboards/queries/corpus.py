"""The funnel of a `tokens` artifact: what was read, what each step dropped and why, what is left."""

import json
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import streamlit as st

from cupola_dashboards.queries.workspace import workspace
from cupola_platform.registry import ArtifactRow

EXAMPLE_CHARACTERS = 1_200


def corpora(limit: int = 200) -> list[ArtifactRow]:
    """`tokens` artifacts, newest first."""
    return workspace().registry.artifacts("tokens", limit)


@st.cache_data(show_spinner="Reading the corpus report...", max_entries=32)
def report(digest: str) -> dict[str, Any]:
    """`report.json` as it is. Raises NotFoundError, CorruptArtifactError."""
    text = (workspace().store.get(digest).path / "report.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def funnel(told: dict[str, Any]) -> pd.DataFrame:
    """A row a step, in order: step, documents_in, documents_out, bytes_in, bytes_out, dropped (documents)."""
    keys = ["step", "documents_in", "documents_out", "bytes_in", "bytes_out"]
    frame = pd.DataFrame([[step[key] for key in keys] for step in told["steps"]], columns=keys)
    return frame.assign(dropped=frame["documents_in"] - frame["documents_out"])


def drops(told: dict[str, Any]) -> pd.DataFrame:
    """A row a reason, biggest first: step, reason, documents, bytes, example."""
    rows = [
        (step["step"], why["reason"], why["documents"], why["bytes"], _example(why["examples"]))
        for step in told["steps"]
        for why in step["dropped"]
    ]
    frame = pd.DataFrame(rows, columns=["step", "reason", "documents", "bytes", "example"])
    return frame.sort_values("documents", ascending=False, kind="stable", ignore_index=True)


def sources(told: dict[str, Any]) -> pd.DataFrame:
    """A row a source and split: source, split, documents, tokens, bytes."""
    rows = [
        (source, split, count["documents"], count["tokens"], count["bytes"])
        for source, splits in told["sources"].items()
        for split, count in splits.items()
    ]
    return pd.DataFrame(rows, columns=["source", "split", "documents", "tokens", "bytes"])


def languages(told: dict[str, Any]) -> pd.DataFrame:
    """A row a language, biggest first: language, documents, bytes."""
    rows = [(name, count["documents"], count["bytes"]) for name, count in told["languages"].items()]
    frame = pd.DataFrame(rows, columns=["language", "documents", "bytes"])
    return frame.sort_values("bytes", ascending=False, kind="stable", ignore_index=True)


@st.cache_data(show_spinner=False, max_entries=64)
def examples(digest: str, source: str, split: str, count: int = 5) -> pd.DataFrame:
    """The first documents of one source and split: path, language, tokens, text (its beginning)."""
    path = workspace().store.get(digest).path / "documents.parquet"
    columns = ["source", "split", "path", "language", "tokens", "text"]
    found: list[dict[str, Any]] = []
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=256, columns=columns):
            found += [row for row in batch.to_pylist() if row["source"] == source and row["split"] == split]
            if len(found) >= count:
                break
    frame = pd.DataFrame(found[:count], columns=columns)
    return frame.assign(text=frame["text"].astype(str).str.slice(0, EXAMPLE_CHARACTERS))


def _example(found: list[dict[str, str]]) -> str:
    return f"{found[0]['document']}: {found[0]['detail']}".removesuffix(": ") if found else ""
