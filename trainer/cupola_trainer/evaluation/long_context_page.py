"""The report page of long-context evaluation. Does not import torch."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cupola_platform.reports import page as reports
from cupola_platform.reports.charts import COLOURS, GREY, Cell, Chart, heatmap
from cupola_platform.reports.page import escape

MOST_NATS = 3.0
"""Height of the loss axis above the lowest point; higher losses are clipped, since the model has broken down there."""


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The page for checkpoints by name, each with `long_context` of its results.json."""
    return reports.page("Long context", *(_section(name, measured) for name, measured in results.items()))


def _section(name: str, measured: Mapping[str, Any]) -> str:
    methods, trained = measured["methods"], measured["trained_length"]
    grids = (f"<div><b>{escape(each)}</b>{_grid(each, rows['needle'])}</div>" for each, rows in methods.items())
    return (
        f"<h2>{escape(name)}: loss by position</h2>"
        f"<p><small>Mean -ln p on {measured['tokens']:,} held-out tokens; "
        f"trained at {trained:,} tokens (dashed).</small></p>"
        f"{_curves(methods, trained, measured['longest'])}{_table(methods)}"
        f"<h2>{escape(name)}: needles found</h2>"
        "<p><small>Share of the needle's tokens predicted correctly, by text length (columns) and depth (rows, 0 is "
        "the beginning). In the last row the text has no needle, so it can only be guessed.</small></p>"
        f'<div class="two">{"".join(grids)}</div>'
    )


def _curves(methods: Mapping[str, Any], trained: int, longest: int) -> str:
    losses = [point["loss"] for rows in methods.values() for point in rows["loss_by_position"]]
    low = math.floor(min(losses) * 2) / 2
    high = min(math.ceil(max(losses) * 2) / 2, low + MOST_NATS)
    with Chart("Loss by position", height=320) as chart:
        for number, (name, rows) in enumerate(methods.items()):
            places = [(point["from"] + point["to"]) / 2 for point in rows["loss_by_position"]]
            shown = [min(point["loss"], high) for point in rows["loss_by_position"]]
            (line,) = chart.axes.plot(places, shown, color=COLOURS[number % len(COLOURS)], label=name)
            chart.hint(line, name)
        chart.axes.axvline(trained, color=GREY, linestyle="--")
        chart.axes.set_xticks(ticks := sorted({0, trained, longest}), [f"{tick:,}" for tick in ticks])
        chart.axes.set_xlim(0, longest)
        chart.axes.set_ylim(low, high if high > low else low + 0.5)
        chart.axes.grid(axis="y", alpha=0.3)
        chart.legend()
    return chart.svg


def _grid(method: str, cells: Sequence[Mapping[str, Any]]) -> str:
    lengths = sorted({cell["length"] for cell in cells})
    depths = [*sorted({cell["depth"] for cell in cells if cell["depth"] is not None}), None]
    return heatmap(
        [
            Cell(depths.index(cell["depth"]), lengths.index(cell["length"]), cell["recall"], f"-ln p {cell['nll']:.2f}")
            for cell in cells
        ],
        ["none" if depth is None else f"{depth:g}" for depth in depths],
        [f"{length:,}" for length in lengths],
        about=f"Needles found: {method}",
    )


def _table(methods: Mapping[str, Any]) -> str:
    rows = summary(methods)
    head = list(rows[0])
    return reports.table(head, (list(row.values()) for row in rows), numbers=head[1:])


def summary(methods: Mapping[str, Any]) -> list[dict[str, str]]:
    """One row per method: losses within and past the trained length, recall overall and at each length, and the gain in
    log-probability (nats) of needles that are in the text."""
    table = []
    for name, rows in methods.items():
        cells = [cell for cell in rows["needle"] if cell["depth"] is not None]
        by_length = {
            f"at {length:,}": f"{_mean(cell['recall'] for cell in cells if cell['length'] == length):.0%}"
            for length in sorted({cell["length"] for cell in cells})
        }
        guessed = _mean(cell["nll"] for cell in rows["needle"] if cell["depth"] is None)
        past = rows["loss_past"]
        table.append(
            {
                "method": name,
                "loss within": f"{rows['loss_within']:.3f}",
                "loss past": "" if past is None else f"{past:.3f}",
                "perplexity past": "" if past is None else f"{math.exp(past):,.1f}",
                "needle recall": f"{_mean(cell['recall'] for cell in cells):.0%}",
                **by_length,
                "needle gain": f"{guessed - _mean(cell['nll'] for cell in cells):.2f}",
            }
        )
    return table


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)
