"""How far a checkpoint reads, as one page that needs nothing from elsewhere. Imports no torch."""

import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

COLOURS = ("#b4541a", "#2f6f8f", "#5b8c3a", "#8a4f9e", "#b08c1e", "#3d5a99", "#a03a4e")
WIDTH, HEIGHT, LEFT, BOTTOM = 720, 280, 48, 34
CELL = 44
MOST_NATS = 3.0
"""The curve's axis ends this far above its lowest point: a loss beyond that is off the chart, and off the model."""

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c1b1a;background:#fdfcfa}
h1{font-size:1.5rem}h2{font-size:1.05rem;margin:2rem 0 .4rem}p{margin:.2rem 0}small{color:#6b6660}
table{border-collapse:collapse}td,th{padding:.2rem .9rem .2rem 0;text-align:left}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
svg{max-width:100%;height:auto}.grids{display:flex;flex-wrap:wrap;gap:1.5rem}
@media(prefers-color-scheme:dark){body{color:#eae6e1;background:#1b1a19}svg text{fill:#eae6e1}small{color:#a09a92}}
"""


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The page of one or more checkpoints: name to `long_context` of results.json."""
    sections = "".join(_section(name, found) for name, found in results.items())
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Long context</title>'
        f"<style>{_STYLE}</style><h1>Long context</h1>{sections}</html>\n"
    )


def _section(name: str, found: Mapping[str, Any]) -> str:
    methods, trained = found["methods"], found["trained_length"]
    grids = "".join(f"<div><b>{_text(each)}</b><br>{_grid(rows['needle'])}</div>" for each, rows in methods.items())
    return (
        f"<h2>{_text(name)}: loss by position</h2>"
        f"<p><small>Mean -ln p on {found['tokens']:,} held-out tokens; trained at {trained:,} tokens (dashed).</small></p>"
        f"{_curves(methods, trained, found['longest'])}{_table(methods)}"
        f"<h2>{_text(name)}: needles found</h2>"
        "<p><small>Share of the needle's tokens said right: text length across, depth down (0 is the beginning); "
        "the last row has no needle in the text, so that it can only be guessed.</small></p>"
        f'<div class="grids">{grids}</div>'
    )


def _curves(methods: Mapping[str, Any], trained: int, longest: int) -> str:
    losses = [point["loss"] for rows in methods.values() for point in rows["loss_by_position"]]
    low = math.floor(min(losses) * 2) / 2
    high = min(math.ceil(max(losses) * 2) / 2, low + MOST_NATS)

    def at(position: float, loss: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - 10) * position / longest
        return x, (HEIGHT - BOTTOM) - (HEIGHT - BOTTOM - 10) * (min(loss, high) - low) / (high - low or 1)

    parts = [*_axes(at, low, high, trained, longest)]
    for (name, rows), colour in zip(methods.items(), _colours(methods), strict=True):
        points = [at((each["from"] + each["to"]) / 2, each["loss"]) for each in rows["loss_by_position"]]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"><title>{_text(name)}</title></polyline>'
        )
    legend = " ".join(
        f'<span style="color:{colour}">&#9632;</span> {_text(name)}'
        for name, colour in zip(methods, _colours(methods), strict=True)
    )
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Loss by position">{"".join(parts)}</svg><p>{legend}</p>'


def _axes(at: Any, low: float, high: float, trained: int, longest: int) -> Iterator[str]:
    ticks = round((high - low) * 2)
    for number in range(ticks + 1):
        loss = low + number / 2
        x, y = at(0, loss)
        yield f'<line x1="{x}" x2="{WIDTH - 10}" y1="{y:.1f}" y2="{y:.1f}" stroke="#8884"/>'
        yield f'<text x="{x - 6}" y="{y + 4:.1f}" font-size="11" text-anchor="end">{loss:.1f}</text>'
    for position in sorted({0, trained, longest}):
        x, y = at(position, low)
        anchor = "end" if position == longest else "middle"
        yield f'<text x="{x:.1f}" y="{y + 16:.1f}" font-size="11" text-anchor="{anchor}">{position:,}</text>'
    x, bottom = at(trained, low)
    _, top = at(trained, high)
    yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}" stroke="#888" stroke-dasharray="4 3"/>'


def _grid(cells: Sequence[Mapping[str, Any]]) -> str:
    lengths = sorted({cell["length"] for cell in cells})
    depths = [*sorted({cell["depth"] for cell in cells if cell["depth"] is not None}), None]
    parts = []
    for cell in cells:
        x, y = 40 + lengths.index(cell["length"]) * CELL, depths.index(cell["depth"]) * CELL // 2
        parts.append(
            f'<rect x="{x}" y="{y}" width="{CELL - 2}" height="{CELL // 2 - 2}" fill="#2f6f8f" '
            f'fill-opacity="{0.06 + 0.94 * cell["recall"]:.2f}"><title>-ln p {cell["nll"]:.2f}</title></rect>'
            f'<text x="{x + CELL / 2 - 1}" y="{y + 14}" font-size="11" text-anchor="middle">{cell["recall"]:.0%}</text>'
        )
    for number, depth in enumerate(depths):
        label = "none" if depth is None else f"{depth:g}"
        parts.append(f'<text x="34" y="{number * CELL / 2 + 14}" font-size="11" text-anchor="end">{label}</text>')
    height = len(depths) * CELL // 2 + 16
    for number, length in enumerate(lengths):
        middle = 40 + number * CELL + CELL / 2 - 1
        parts.append(f'<text x="{middle}" y="{height - 4}" font-size="11" text-anchor="middle">{length:,}</text>')
    width = 40 + len(lengths) * CELL
    return f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'


def _table(methods: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{_text(row['method'])}</td>"
        + "".join(f'<td class="n">{row[key]}</td>' for key in list(row)[1:])
        + "</tr>"
        for row in summary(methods)
    )
    headings = list(summary(methods)[0])
    head = "".join(f'<th class="{"n" if number else ""}">{each}</th>' for number, each in enumerate(headings))
    return f"<table><tr>{head}</tr>{rows}</table>"


def summary(methods: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row a method: losses within and past the trained length, how much of the needles was found, in all and at each
    length, and by how many nats a needle in the text made its own tokens likelier."""
    table = []
    for name, rows in methods.items():
        told = [cell for cell in rows["needle"] if cell["depth"] is not None]
        by_length = {
            f"at {length:,}": f"{_mean(cell['recall'] for cell in told if cell['length'] == length):.0%}"
            for length in sorted({cell["length"] for cell in told})
        }
        guessed = _mean(cell["nll"] for cell in rows["needle"] if cell["depth"] is None)
        past = rows["loss_past"]
        table.append(
            {
                "method": name,
                "loss within": f"{rows['loss_within']:.3f}",
                "loss past": "" if past is None else f"{past:.3f}",
                "perplexity past": "" if past is None else f"{math.exp(past):,.1f}",
                "needle recall": f"{_mean(cell['recall'] for cell in told):.0%}",
                **by_length,
                "needle gain": f"{guessed - _mean(cell['nll'] for cell in told):.2f}",
            }
        )
    return table


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


def _colours(methods: Mapping[str, Any]) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(len(methods))]


def _text(value: str) -> str:
    return html.escape(value)
