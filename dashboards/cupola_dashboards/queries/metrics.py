"""A job's growing `metrics.jsonl`: progress from the end of the file, curves from all of it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

FILE = "metrics.jsonl"
TAIL_BYTES = 32_768
MOST_POINTS = 1_500
"""Maximum points on a curve: about a screen's pixels."""
BOOKKEEPING = {
    "event",
    "time",
    "step",
    "steps",
    "kind",
    "world_size",
    "parameters",
    "path",
    "status",
    "consumed_samples",
}
FIRST_CURVES = ("loss", "heldout_loss", "grad_norm", "lr", "tokens_per_second")
"""The curves that all training jobs have; the others follow in order of name."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A job's progress."""

    step: int
    steps: int
    loss: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    """Estimated from the latest steps; None if the job has ended or just started."""

    @property
    def share(self) -> float:
        """Share of the steps done, from 0 to 1."""
        return min(1.0, self.step / self.steps) if self.steps else 0.0


def metrics_file(work_folder: Path | None) -> Path | None:
    """The newest metrics file in a stage's work folder; None if there is none."""
    if work_folder is None:
        return None
    files = [path for path in (work_folder / "job" / FILE, work_folder / FILE) if path.is_file()]
    parts = [path for pattern in (f"*/{FILE}", f"*/*/{FILE}") for path in work_folder.glob(pattern)]
    return files[0] if files else max(parts, key=lambda path: path.stat().st_mtime, default=None)


def progress(file: Path | None) -> Progress | None:
    """Progress of the job that writes `file`, from its first line and its end; None before its first line."""
    stamp = _stamp(file)
    return None if file is None or stamp is None else _progress(str(file), stamp)


def curves(file: Path | None) -> pd.DataFrame:
    """All metrics of all steps, thinned to `MOST_POINTS` steps per curve: step, name, value."""
    stamp = _stamp(file)
    if file is None or stamp is None:
        return pd.DataFrame(
            {"step": pd.Series(dtype=int), "name": pd.Series(dtype=str), "value": pd.Series(dtype=float)}
        )
    return _curves(str(file), stamp)


def parameters(file: Path | None) -> int | None:
    """Number of parameters of the job's model."""
    if file is None or not file.is_file():
        return None
    with file.open("rb") as lines:
        first = next(_events(lines.readline()), {})
    count = first.get("parameters")
    return int(count) if isinstance(count, int | float) else None


def curve_names(frame: pd.DataFrame) -> list[str]:
    """The curves of a frame, the most common first."""
    names = sorted(frame["name"].unique())
    return [name for name in FIRST_CURVES if name in names] + [name for name in names if name not in FIRST_CURVES]


def drawn_together(names: list[str]) -> list[str]:
    """`names` without the held-out curves, which are drawn with their training curves."""
    return [name for name in names if name.removeprefix("heldout_") not in names or not name.startswith("heldout_")]


def _stamp(file: Path | None) -> tuple[int, int] | None:
    """A value that changes with the file."""
    try:
        status = file.stat() if file else None
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size) if status else None


@st.cache_data(show_spinner=False, max_entries=4_000)
def _progress(file: str, stamp: tuple[int, int]) -> Progress | None:
    with Path(file).open("rb") as lines:
        first = lines.readline()
        lines.seek(max(len(first), stamp[1] - TAIL_BYTES))
        events = [*_events(first), *_events(lines.read())]
    starts = [event for event in events if event.get("event") == "start"]
    if not starts:
        return None
    since = next((i for i in range(len(events) - 1, -1, -1) if events[i].get("event") == "start"), 0)
    seen = [event for event in events if event.get("event") == "step"]
    recent = [event for event in events[since:] if event.get("event") == "step"]
    last = seen[-1] if seen else {}
    steps, step = int(starts[-1]["steps"]), int(last.get("step", starts[-1]["step"]))
    ended = any(event.get("event") == "end" for event in events[since:])
    return Progress(
        step=step,
        steps=steps,
        loss=last.get("loss"),
        tokens_per_second=last.get("tokens_per_second"),
        seconds_left=None if ended else _seconds_left(recent, steps),
    )


def _seconds_left(recent: list[dict[str, Any]], steps: int) -> float | None:
    if len(recent) < 2 or recent[-1]["step"] == recent[0]["step"]:
        return None
    pace = (recent[-1]["time"] - recent[0]["time"]) / (recent[-1]["step"] - recent[0]["step"])
    return float(pace * max(0, steps - recent[-1]["step"]))


@st.cache_data(show_spinner=False, max_entries=64)
def _curves(file: str, stamp: tuple[int, int]) -> pd.DataFrame:
    values: dict[str, dict[int, float]] = {}
    for event in _events(Path(file).read_bytes()):
        if event.get("event") not in ("step", "evaluate"):
            continue
        for name, value in event.items():
            if name not in BOOKKEEPING and isinstance(value, int | float) and not isinstance(value, bool):
                values.setdefault(name, {})[int(event["step"])] = float(value)
    rows = [(step, name, value) for name, points in values.items() for step, value in _thinned(sorted(points.items()))]
    return pd.DataFrame(rows, columns=["step", "name", "value"])


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    every = -(-len(points) // MOST_POINTS)
    kept = points[::every]
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _events(text: bytes) -> Iterator[dict[str, Any]]:
    """Complete lines that are JSON objects; the first and last line may be truncated."""
    for line in text.split(b"\n"):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            yield event
