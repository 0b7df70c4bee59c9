"""Bars as SVG, for pages that hold everything themselves. Whatever is drawn is a handful of sums, however big the corpus."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

DARK, LIGHT = "#b5502d", "#e2b59a"
SERIES = ("#b5502d", "#2f6fb5", "#2e8b6f", "#a0762c", "#7a4fa0", "#6b6660")
"""Colours of what is compared, in order."""

WIDTH = 860
ROW = 26
NOTE = 190
"""Room for the words after a bar."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One line: a light bar, a dark one on it, words after it."""

    label: str
    whole: float
    part: float
    note: str = ""
    hint: str = ""
    """Shown when the pointer rests on it."""


def bars(rows: Sequence[Bar], *, about: str, labels: int = 190, notes: int = NOTE, width: int = WIDTH) -> str:
    """A line a bar, all to one scale; `labels` and `notes` are the room before and after the bars."""
    most = max((row.whole for row in rows), default=0) or 1
    room = width - labels - notes
    drawn = []
    for i, row in enumerate(rows):
        y, whole, part = i * ROW, room * row.whole / most, room * row.part / most
        drawn.append(
            f"<g><title>{html.escape(row.hint or row.label)}</title>{_label(row.label, labels, y + 17)}"
            f'<rect x="{labels}" y="{y + 4}" width="{whole:.1f}" height="18" rx="2" fill="{LIGHT}"/>'
            f'<rect x="{labels}" y="{y + 4}" width="{part:.1f}" height="18" rx="2" fill="{DARK}"/>'
            f'<text x="{labels + whole + 8:.1f}" y="{y + 17}" class="q">{html.escape(row.note)}</text></g>'
        )
    return _svg(drawn, width, ROW * len(rows), about)


def grouped(
    rows: Sequence[tuple[str, Sequence[tuple[float, str]]]], series: Sequence[str], *, about: str, labels: int = 190
) -> str:
    """For each label a thin bar a series: its value, and the words after it."""
    most = max((value for _, values in rows for value, _ in values), default=0) or 1
    room, height = WIDTH - labels - NOTE, 15 * len(series) + 9
    drawn = []
    for i, (label, values) in enumerate(rows):
        drawn.append(_label(label, labels, i * height + height / 2 + 4))
        for j, (value, note) in enumerate(values):
            y, length = i * height + 4 + 15 * j, room * value / most
            drawn.append(
                f'<rect x="{labels}" y="{y}" width="{length:.1f}" height="12" rx="2" fill="{SERIES[j % len(SERIES)]}"/>'
                f'<text x="{labels + length + 8:.1f}" y="{y + 10}" class="q">{html.escape(note)}</text>'
            )
    return _legend(series) + _svg(drawn, WIDTH, height * len(rows), about)


def columns(rows: Sequence[tuple[str, int]], *, about: str, width: int = WIDTH, height: int = 150) -> str:
    """Columns side by side, each with its number above and its label below."""
    most = max((count for _, count in rows), default=0) or 1
    step = min(72.0, width / max(len(rows), 1))
    drawn = []
    for i, (label, count) in enumerate(rows):
        tall, x = height * count / most, i * step
        drawn.append(
            f"<g><title>{html.escape(label)}: {count:,}</title>"
            f'<rect x="{x + 2:.1f}" y="{20 + height - tall:.1f}" width="{step - 4:.1f}" height="{tall:.1f}" rx="2" fill="{DARK}"/>'
            f'<text x="{x + step / 2:.1f}" y="{14 + height - tall:.1f}" text-anchor="middle" class="q">{short(count)}</text>'
            f'<text x="{x + step / 2:.1f}" y="{height + 38}" text-anchor="middle">{html.escape(label)}</text></g>'
        )
    return _svg(drawn, width, height + 46, about)


def power_of_two(number: int) -> str:
    """`512`, `2K`: in units of 1,024."""
    for unit, size in (("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        if number >= size:
            return f"{number // size}{unit}"
    return str(number)


def short(count: float) -> str:
    """`812`, `12.4k`, `3.1M`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def _label(text: str, room: int, y: float) -> str:
    fits = room // 7
    cut = text if len(text) <= fits else text[: fits - 1] + "…"
    return f'<text x="0" y="{y:g}">{html.escape(cut)}</text>'


def _legend(series: Sequence[str]) -> str:
    return "<p class='legend'>{}</p>".format(
        " ".join(
            f'<span><i style="background:{SERIES[i % len(SERIES)]}"></i>{html.escape(name)}</span>'
            for i, name in enumerate(series)
        )
    )


def _svg(drawn: Sequence[str], width: int, height: float, about: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height:g}" font-size="13" role="img" aria-label="{html.escape(about)}">'
        f"{''.join(drawn)}</svg>"
    )
