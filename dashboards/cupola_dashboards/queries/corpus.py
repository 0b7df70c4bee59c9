"""The funnel of a `tokens` artifact: what was read, what each step dropped and why, and what is left."""

import json
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import streamlit as st

from cupola_dashboards.queries.workspace import workspace
from cupola_platform.registry import ArtifactRow
from cupola_platform.reports.short_numbers import power_of_two

EXAMPLE_CHARACTERS = 1_200


def corpora(limit: int = 200) -> list[ArtifactRow]:
    """`tokens` artifacts, newest first."""
    return workspace().registry.artifacts("tokens", limit)


@st.cache_data(show_spinner="Reading the corpus report...", max_entries=32)
def report(digest: str) -> dict[str, Any]:
    """The artifact's `report.json`. Raises NotFoundError, CorruptArtifactError."""
    text = (workspace().store.get(digest).path / "report.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def funnel(report: dict[str, Any]) -> pd.DataFrame:
    """One row per step, in order: step, documents_in, documents_out, bytes_in, bytes_out, dropped (documents)."""
    keys = ["step", "documents_in", "documents_out", "bytes_in", "bytes_out"]
    frame = pd.DataFrame([[step[key] for key in keys] for step in report["steps"]], columns=keys)
    return frame.assign(dropped=frame["documents_in"] - frame["documents_out"])


def drops(report: dict[str, Any]) -> pd.DataFrame:
    """One row per reason, largest first: step, reason, documents, bytes, examples (a few lines)."""
    rows = [
        (step["step"], why["reason"], why["documents"], why["bytes"], [_example(of) for of in why["examples"]])
        for step in report["steps"]
        for why in step["dropped"]
    ]
    frame = pd.DataFrame(rows, columns=["step", "reason", "documents", "bytes", "examples"])
    return frame.sort_values("documents", ascending=False, kind="stable", ignore_index=True)


def sources(report: dict[str, Any]) -> pd.DataFrame:
    """One row per source and split: source, split, documents, tokens, bytes."""
    rows = [
        (source, split, count["documents"], count["tokens"], count["bytes"])
        for source, splits in report["sources"].items()
        for split, count in splits.items()
    ]
    return pd.DataFrame(rows, columns=["source", "split", "documents", "tokens", "bytes"])


def languages(report: dict[str, Any]) -> pd.DataFrame:
    """One row per language, largest first: language, documents, bytes."""
    rows = [(name, count["documents"], count["bytes"]) for name, count in report["languages"].items()]
    frame = pd.DataFrame(rows, columns=["language", "documents", "bytes"])
    return frame.sort_values("bytes", ascending=False, kind="stable", ignore_index=True)


@st.cache_data(show_spinner=False, max_entries=64)
def examples(digest: str, source: str, split: str, count: int = 5) -> pd.DataFrame:
    """The first documents of one source and split: path, language, tokens, text (its beginning)."""
    path = workspace().store.get(digest).path / "documents.parquet"
    columns = ["source", "split", "path", "language", "tokens", "text"]
    rows: list[dict[str, Any]] = []
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=256, columns=columns):
            rows += [row for row in batch.to_pylist() if row["source"] == source and row["split"] == split]
            if len(rows) >= count:
                break
    frame = pd.DataFrame(rows[:count], columns=columns)
    return frame.assign(text=frame["text"].astype(str).str.slice(0, EXAMPLE_CHARACTERS))


def edits(report: dict[str, Any]) -> pd.DataFrame:
    """One row per kind of edit in kept documents: change, documents, count."""
    rows = [
        (f"{step['step']}: {edit['kind']}", edit["documents"], edit["count"])
        for step in report["steps"]
        for edit in step["edited"]
    ]
    return pd.DataFrame(rows, columns=["change", "documents", "count"])


def of_sources(report: dict[str, Any]) -> pd.DataFrame:
    """One row per source, largest first: source, documents_in (read), bytes_in, documents_out (left), bytes_out."""
    first, last = report["steps"][0]["sources"], report["steps"][-1]["sources"]
    rows = [
        (
            name,
            first[name]["documents_in"],
            first[name]["bytes_in"],
            last[name]["documents_out"],
            last[name]["bytes_out"],
        )
        for name in report["sources"]
    ]
    frame = pd.DataFrame(rows, columns=["source", "documents_in", "bytes_in", "documents_out", "bytes_out"])
    return frame.sort_values("bytes_out", ascending=False, kind="stable", ignore_index=True)


def survival(report: dict[str, Any]) -> pd.DataFrame:
    """One row per source and step: source, step, kept (share of the documents that reached the step)."""
    rows = [
        (source, step["step"], of["documents_out"] / of["documents_in"])
        for step in report["steps"]
        for source, of in step["sources"].items()
        if of["documents_in"]
    ]
    return pd.DataFrame(rows, columns=["source", "step", "kept"])


def lengths(report: dict[str, Any]) -> pd.DataFrame:
    """One row per power of two: from (tokens, as text), documents."""
    counts = {int(power): count for power, count in report["lengths"].items()}
    powers = [1 << i for i in range(min(counts).bit_length() - 1, max(counts).bit_length())] if counts else []
    return pd.DataFrame([(power_of_two(at), counts.get(at, 0)) for at in powers], columns=["from", "documents"])


def clusters(report: dict[str, Any]) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """For each step, clusters by size (size, clusters), and the largest ones (document, documents)."""
    return {
        step: (
            pd.DataFrame(
                [(f"{at} to {2 * int(at) - 1}", count) for at, count in of["sizes"].items()],
                columns=["size", "clusters"],
            ),
            pd.DataFrame(of["largest"], columns=["document", "documents"]),
        )
        for step, of in report["duplicates"].items()
        if of["clusters"]
    }


def mixture(report: dict[str, Any]) -> pd.DataFrame:
    """Two rows per source: source, of (`tokens`, `samples`), share."""
    names = {"share_of_tokens": "tokens", "share_of_samples": "samples"}
    rows = [(name, shown, of[key]) for name, of in report["mixture"].items() for key, shown in names.items()]
    return pd.DataFrame(rows, columns=["source", "of", "share"])


def compression(report: dict[str, Any]) -> pd.DataFrame:
    """One row per language and vocabulary: language, vocabulary, bytes_per_token."""
    rows = [
        (language, "this corpus" if name == "ours" else name, ratio)
        for language, ratios in report["compression"]["languages"].items()
        for name, ratio in ratios.items()
    ]
    return pd.DataFrame(rows, columns=["language", "vocabulary", "bytes_per_token"])


@st.cache_data(show_spinner=False, max_entries=32)
def page(digest: str) -> bytes:
    """`report.html`, the report as one page to save or send."""
    return (workspace().store.get(digest).path / "report.html").read_bytes()


def _example(row: dict[str, str]) -> str:
    return ": ".join(part for part in (row["document"], row["detail"], row["text"]) if part)
