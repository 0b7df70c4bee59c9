"""Page with the reward of WARP's checkpoints over their KL to the parent."""

from collections.abc import Mapping
from typing import NamedTuple

from cupola_platform.reports import page as reports
from cupola_platform.reports.charts import COLOURS, GREY, Chart

Measured = Mapping[str, Mapping[str, float]]


class Point(NamedTuple):
    """Origin of a checkpoint."""

    round: int
    """Round, from 1; 0 for the parent."""
    kind: str
    """beginning, run, merged or between."""
    share: float
    """Share of the way from its round's start to the merged model."""
    start: str
    """Name of the round's start."""


def page(name: str, points: Mapping[str, Point], measured: Measured) -> str:
    """The HTML page.

    Args:
        measured: "reward", "kl" (nats per response) and "length" (tokens) of each point.
    """
    rows = [
        (key, f"{measured[key]['reward']:.4f}", f"{measured[key]['kl']:.4f}", f"{measured[key]['length']:.1f}")
        for key in points
    ]
    return reports.page(
        f"{name}: reward over KL",
        "<p><small>Held-out prompts. KL to the beginning, in nats per response. Dots are single runs, "
        "diamonds their merged weights (SLERP), lines the interpolation to the round's start (LITI)."
        "</small></p>",
        _front(points, measured),
        reports.table(("checkpoint", "reward", "KL", "tokens"), rows, numbers=("reward", "KL", "tokens")),
    )


def _front(points: Mapping[str, Point], measured: Measured) -> str:
    with Chart("Reward over KL", height=400) as chart:
        axes = chart.axes
        for number in sorted({point.round for point in points.values()} - {0}):
            inner = {key: point for key, point in points.items() if point.round == number and point.kind != "run"}
            ends = [next(iter(inner.values())).start, *sorted(inner, key=lambda key: inner[key].share)]
            (line,) = axes.plot(
                [measured[key]["kl"] for key in ends], [measured[key]["reward"] for key in ends], color=_colour(number)
            )
            chart.hint(line, f"round {number}")
        for key, point in points.items():
            (dot,) = axes.plot(
                measured[key]["kl"],
                measured[key]["reward"],
                marker="D" if point.kind == "merged" else "o",
                markersize={"merged": 9, "run": 8}.get(point.kind, 5),
                color=_colour(point.round),
            )
            chart.hint(dot, key)
        axes.set_xlabel("KL to the beginning")
        axes.set_ylabel("reward")
        axes.grid(alpha=0.3)
    return chart.svg


def _colour(number: int) -> str:
    return COLOURS[(number - 1) % len(COLOURS)] if number else GREY
