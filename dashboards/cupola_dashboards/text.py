"""Formatting of numbers and times, and elements shared by several pages."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import wraps
from typing import ParamSpec

import pandas as pd
import streamlit as st

from cupola_flows.terminal.text import in_markdown
from cupola_platform.errors import CupolaError

Arguments = ParamSpec("Arguments")

STATUSES = {
    "running": "blue",
    "completed": "green",
    "reused": "gray",
    "failed": "red",
    "failed (lost)": "red",
    "cancelled": "orange",
    "detached": "violet",
    "continued": "gray",
}
"""Colour of each status."""
NOTHING_YET = "Nothing has run yet. Start with `cupola run tiny`, or on the page **Launch**."


def guarded(page: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Decorator of a page, or a part of one, that shows Cupola's errors as one line."""

    @wraps(page)
    def shown(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            page(*args, **kwargs)
        except CupolaError as error:
            st.error(plain(str(error)))

    return shown


def plain(text: object) -> str:
    """Untrusted text (of a model, a run, a file name) escaped for labels, captions and errors, which render Markdown.

    For longer text use `st.text`, `st.code` or `html.escape`, which do not.
    """
    return in_markdown(text)


def ago(moment: datetime | None, now: datetime | None = None) -> str:
    """`3 min ago`; empty for None."""
    if moment is None or pd.isna(moment):
        return ""
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return "just now"


def lasting(seconds: float | None) -> str:
    """`1:05` or `2:03:04`; empty for None."""
    if seconds is None or pd.isna(seconds):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def megabytes(count: float) -> str:
    """`3.1 MB`."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def number(value: float | None, form: str = ".3f") -> str:
    """A formatted number; a dash for None."""
    return "–" if value is None or pd.isna(value) else format(value, form)


def short(value: float) -> str:
    """`6,216,957` or `0.0535`."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def status_column(label: str = "Status") -> object:
    """Statuses as coloured tags (a column of lists)."""
    return st.column_config.MultiselectColumn(label, options=list(STATUSES), color=list(STATUSES.values()), width=112)


def alias_column(names: list[str]) -> object:
    """Aliases as coloured tags (a column of lists)."""
    return st.column_config.MultiselectColumn("Alias", options=names, color=["primary"] * len(names), width="small")
