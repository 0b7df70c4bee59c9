"""What WARP's checkpoints are worth over how far they are from the beginning, as one page that needs nothing from elsewhere."""

import html
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from cupola_platform.reports.page import page as html_page

WIDTH, HEIGHT, LEFT, BOTTOM = 720, 360, 52, 40
COLOURS = ("#b4541a", "#2f6f8f", "#5b8c3a", "#8a4f9e", "#b08c1e", "#3d5a99", "#a03a4e")
Place = Callable[[float, float], tuple[float, float]]


class Point(NamedTuple):
    """Where a checkpoint comes from."""

    round: int
    """From 1 on; 0 for the beginning."""
    kind: str
    """beginning, run, merged or between."""
    share: float
    """How far from its round's beginning to the merged runs it lies."""
    start: str
    """Its round's beginning."""


def page(name: str, points: Mapping[str, Point], measured: Mapping[str, Mapping[str, float]]) -> str:
    """The page.

    Args:
        measured: of each of the points, "reward", "kl" (nats an answer) and "length" (tokens).
    """
    return html_page(
        f"{name}: reward over KL",
        "<p><small>Held-out questions; KL to the beginning, nats an answer. Dots are single runs, diamonds their merged "
        "weights (SLERP), the line what lies between those and the round's beginning (LITI).</small></p>",
        _picture(points, measured),
        _table(points, measured),
    )


def _picture(points: Mapping[str, Point], measured: Mapping[str, Mapping[str, float]]) -> str:
    at, axes = _axes([each["kl"] for each in measured.values()], [each["reward"] for each in measured.values()])
    parts = [axes]
    for number in sorted({point.round for point in points.values()} - {0}):
        colour = COLOURS[(number - 1) % len(COLOURS)]
        inner = {key: point for key, point in points.items() if point.round == number and point.kind != "run"}
        ends = [next(iter(inner.values())).start, *sorted(inner, key=lambda key: inner[key].share)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (_place(at, measured[key]) for key in ends))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
    for key, point in points.items():
        x, y = _place(at, measured[key])
        colour = COLOURS[(point.round - 1) % len(COLOURS)] if point.round else "#888"
        shape = (
            f'<path d="M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7z" fill="{colour}">'
            if point.kind == "merged"
            else f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{5 if point.kind == "run" else 3}" fill="{colour}">'
        )
        parts.append(f"{shape}<title>{html.escape(key)}</title></{'path' if point.kind == 'merged' else 'circle'}>")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Reward over KL">{"".join(parts)}</svg>'


def _axes(kls: Sequence[float], rewards: Sequence[float]) -> tuple[Place, str]:
    left, right = min(0.0, *kls), max(*kls, 1e-6)
    low, high = min(rewards), max(rewards)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5

    def at(kl: float, reward: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - 20) * (kl - left) / (right - left)
        return x, (HEIGHT - BOTTOM) - (HEIGHT - BOTTOM - 20) * (reward - low) / (high - low)

    parts = []
    for tick in range(5):
        x, y = at(left + (right - left) * tick / 4, low + (high - low) * tick / 4)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 20}" y1="{y:.1f}" y2="{y:.1f}" stroke="#8884"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" font-size="11" text-anchor="end">{low + (high - low) * tick / 4:.3f}</text>'
        )
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" font-size="11" text-anchor="middle">'
            f"{left + (right - left) * tick / 4:.2f}</text>"
        )
    parts.append(
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" font-size="12" text-anchor="middle">KL to the beginning</text>'
    )
    return at, "".join(parts)


def _place(at: Place, values: Mapping[str, float]) -> tuple[float, float]:
    return at(values["kl"], values["reward"])


def _table(points: Mapping[str, Point], measured: Mapping[str, Mapping[str, float]]) -> str:
    rows = "".join(
        f'<tr><td>{html.escape(key)}</td><td class="n">{measured[key]["reward"]:.4f}</td>'
        f'<td class="n">{measured[key]["kl"]:.4f}</td><td class="n">{measured[key]["length"]:.1f}</td></tr>'
        for key in points
    )
    return f'<table><tr><th>checkpoint</th><th class="n">reward</th><th class="n">KL</th><th class="n">tokens</th></tr>{rows}</table>'
