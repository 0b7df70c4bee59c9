"""The charting helper of all reports: matplotlib axes in one style, as SVG to embed in a page.

matplotlib rather than altair, because pages must work without a network and altair would add a megabyte of JavaScript.
matplotlib takes half a second to import, so it is imported on first use.

Labels may be untrusted text. matplotlib escapes text, and `$...$` is not parsed as mathematics here; text added to the
SVG is escaped below.
"""

import html
import io
import re
import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.container import BarContainer

COLOURS = ("#b5502d", "#2f6fb5", "#2e8b6f", "#a0762c", "#7a4fa0", "#6b6660", "#a03a4e")
"""Colours of the series compared, in order."""
DARK, LIGHT, GREY = COLOURS[0], "#e2b59a", "#8a827b"
WIDTH = 860
"""The full width of a page, in pixels."""
CHARACTER = 24
"""Pixels of a chart's width per character of a label or note; longer ones are truncated."""

_LOOK: Mapping[str, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same charts everywhere; the page uses its own font
    "font.size": 12,
    "text.parse_math": False,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "xtick.color": GREY,
    "xtick.labelcolor": "black",  # the page replaces it with its text colour
    "ytick.color": GREY,
    "ytick.labelcolor": "black",
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "cupola",  # makes the SVG deterministic
}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_GROUP = re.compile(r'<g id="([^"]*)"(/?)>')
_NAMESPACE = re.compile(r' xmlns(?::\w+)?="[^"]*"')
"""Needed in an SVG file, but not within a page."""
_SIZE = re.compile(r'width="([0-9.]+)pt" height="([0-9.]+)pt"')
_DRAWING = threading.Lock()
"""matplotlib's settings and the warning filters are global to the process."""


class Chart:
    """One chart. Draw on `chart.axes` within `with Chart("reward over KL") as chart:`, then read `chart.svg`."""

    axes: "Axes"
    svg: str

    def __init__(self, about: str, *, width: int = WIDTH, height: int = 300) -> None:
        """`about` is the text alternative for screen readers; `width` and `height` are in pixels."""
        self._about, self._width, self._height = about, width, height
        self._hints: dict[str, str] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        from matplotlib import style
        from matplotlib.figure import Figure

        self._stack.enter_context(_DRAWING)
        self._stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # the browser has it
        self._stack.enter_context(style.context(["default", dict(_LOOK)]))
        self._figure = Figure(figsize=(self._width / 72, self._height / 72), dpi=72, layout="constrained")
        self.axes = self._figure.add_subplot()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if kind is None:
                self.svg = self._drawn()

    def hint(self, artist: "Artist", text: str) -> None:
        """Set the tooltip of something drawn."""
        key = f"hint-{len(self._hints)}"
        artist.set_gid(key)
        self._hints[key] = text

    def legend(self) -> None:
        """Put a legend above the chart."""
        handles, names = self.axes.get_legend_handles_labels()
        self._figure.legend(handles, names, loc="outside upper left", ncols=max(1, min(len(names), 4)))

    def logarithmic(self, *names: Literal["x", "y"]) -> None:
        """Make axes logarithmic, with ticks at 1, 2 and 5 times powers of ten, written as plain numbers."""
        from matplotlib.ticker import LogLocator, NullLocator

        for name in names:
            self.axes.set(**{f"{name}scale": "log"})
            axis = getattr(self.axes, f"{name}axis")
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter("{x:.3g}")  # matplotlib's default is mathtext

    def _drawn(self) -> str:
        file = io.StringIO()
        self._figure.savefig(file, format="svg", metadata=_NO_METADATA)
        drawn = file.getvalue()
        _, _, drawn = drawn.partition("<svg ")
        begin, _, rest = drawn.partition(">")
        begin = _SIZE.sub(r'width="\1" height="\2"', _NAMESPACE.sub("", " " + begin))
        drawn = f"{begin}>{_GROUP.sub(self._hinted, rest)}"
        return f'<svg role="img" aria-label="{html.escape(self._about)}"{drawn}'

    def _hinted(self, group: re.Match[str]) -> str:
        """A group with its tooltip and without its id, which would repeat in a page with two charts."""
        hint = self._hints.get(group[1])
        return f"<g{group[2]}>" if hint is None else f"<g><title>{html.escape(hint)}</title>"


@dataclass(frozen=True, slots=True)
class Bar:
    """One row: a light bar, a dark bar on top of it, and a note."""

    label: str
    whole: float
    part: float
    note: str = ""
    hint: str = ""
    """Tooltip; the label if empty."""


def bars(rows: Sequence[Bar], *, about: str, width: int = WIDTH) -> str:
    """Horizontal bars from top to bottom, on one scale."""
    with Chart(about, width=width, height=26 * len(rows) + 12) as chart:
        for at, row in enumerate(rows):
            whole = chart.axes.barh(at, row.whole, 0.7, color=LIGHT)
            chart.hint(whole.patches[0], row.hint or row.label)
            part = chart.axes.barh(at, row.part, 0.7, color=DARK)
            chart.hint(part.patches[0], row.hint or row.label)
            _notes(chart.axes, whole, [cut(row.note, width)])
        _lines(chart.axes, [cut(row.label, width) for row in rows])
    return chart.svg


def grouped(rows: Sequence[tuple[str, Sequence[tuple[float, str]]]], series: Sequence[str], *, about: str) -> str:
    """For each label, one thin bar per series: its value and its note."""
    thick = 0.8 / len(series)
    with Chart(about, height=len(rows) * (15 * len(series) + 9) + 40) as chart:
        for i, name in enumerate(series):
            places = [at + thick * (i - (len(series) - 1) / 2) for at in range(len(rows))]
            values = [values[i] for _, values in rows]
            drawn = chart.axes.barh(
                places, [value for value, _ in values], 0.9 * thick, label=cut(name), color=COLOURS[i % len(COLOURS)]
            )
            _notes(chart.axes, drawn, [cut(note) for _, note in values])
        _lines(chart.axes, [cut(label) for label, _ in rows])
        chart.legend()
    return chart.svg


def columns(rows: Sequence[tuple[str, int]], *, about: str, numbers: Sequence[str], width: int = WIDTH) -> str:
    """Columns side by side, each with its label below and its text from `numbers` above."""
    with Chart(about, width=width, height=180) as chart:
        drawn = chart.axes.bar(range(len(rows)), [count for _, count in rows], 0.9, color=DARK)
        for patch, (label, count) in zip(drawn.patches, rows, strict=True):
            chart.hint(patch, f"{label}: {count:,}")
        chart.axes.bar_label(drawn, labels=list(numbers), padding=3, alpha=0.7)
        chart.axes.set_xticks(range(len(rows)), [cut(label) for label, _ in rows])
        chart.axes.set_xlim(-0.5, max(len(rows), width / 72) - 0.5)  # keeps a few columns from getting too wide
        _bare(chart.axes)
        chart.axes.set_yticks([])
        chart.axes.margins(y=0.15)
    return chart.svg


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a `heatmap`."""

    row: int
    column: int
    share: float
    """From 0 (light) to 1 (dark)."""
    hint: str


def heatmap(cells: Sequence[Cell], rows: Sequence[str], columns: Sequence[str], *, about: str) -> str:
    """Cells with their shares in percent, from the top; row names on the left, column names below."""
    with Chart(about, width=60 + 52 * len(columns), height=24 * len(rows) + 30) as chart:
        for cell in cells:
            drawn = chart.axes.barh(
                cell.row, 0.96, 0.92, left=cell.column - 0.48, color=COLOURS[1], alpha=0.06 + 0.94 * cell.share
            )
            chart.hint(drawn.patches[0], cell.hint)
            chart.axes.text(cell.column, cell.row, f"{cell.share:.0%}", ha="center", va="center", fontsize=11)
        chart.axes.set_xticks(range(len(columns)), columns)
        chart.axes.set_yticks(range(len(rows)), rows)
        chart.axes.set_ylim(len(rows) - 0.5, -0.5)
        chart.axes.set_xlim(-0.5, len(columns) - 0.5)
        _bare(chart.axes)
    return chart.svg


def cut(label: str, width: int = WIDTH) -> str:
    """A label truncated to fit a chart of this width."""
    most = width // CHARACTER
    return label if len(label) <= most else label[: most - 1] + "…"


def _notes(axes: "Axes", drawn: "BarContainer", notes: Sequence[str]) -> None:
    axes.bar_label(drawn, labels=list(notes), padding=8, alpha=0.7)


def _lines(axes: "Axes", labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.margins(x=0)
    axes.set_xticks([])
    _bare(axes)


def _bare(axes: "Axes") -> None:
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
