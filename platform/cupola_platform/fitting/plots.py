"""Pages that show fitted laws: SVG and HTML without anything from elsewhere."""

import html
import math
from collections.abc import Mapping, Sequence

from cupola_platform.fitting.mixtures import Proposal
from cupola_platform.fitting.scaling import Laws, PowerLaw, Run

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#1c1b1a;background:#fdfcfa}
h1{font-size:1.5rem}h2{font-size:1.05rem;margin:2rem 0 .4rem}small{color:#6b6660}svg{display:block;width:100%;height:auto}
td,th{padding:.2rem .9rem .2rem 0;text-align:left;font-variant-numeric:tabular-nums}
@media(prefers-color-scheme:dark){body{color:#eae6e1;background:#1b1a19}svg text{fill:#eae6e1}small{color:#a09a92}}
"""


def page(title: str, *parts: str) -> str:
    """One HTML page."""
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    return f"{head}<title>{html.escape(title)}</title><style>{_STYLE}</style><h1>{html.escape(title)}</h1>{''.join(parts)}</html>"


def mixture_page(proposal: Proposal, baseline: Mapping[str, float]) -> str:
    """Each domain's weight before and as proposed, with its interval."""
    rows = []
    for i, (name, weight) in enumerate(proposal.weights.items()):
        y = 34 * i
        low, high = proposal.low[name], proposal.high[name]
        rows.append(
            f'<text x="0" y="{y + 20}">{html.escape(name)}</text>'
            f'<rect x="170" y="{y + 4}" width="{500 * baseline[name]:.1f}" height="9" fill="#c9b8ab"/>'
            f'<rect x="170" y="{y + 14}" width="{500 * weight:.1f}" height="9" fill="#b5502d"/>'
            f'<line x1="{170 + 500 * low:.1f}" x2="{170 + 500 * high:.1f}" y1="{y + 18.5}" y2="{y + 18.5}" '
            f'stroke="#3a2a20" stroke-width="2"/>'
            f'<text x="{180 + 500 * max(high, weight, baseline[name]):.1f}" y="{y + 20}">{weight:.1%} ({low:.0%} to {high:.0%})</text>'
        )
    drawing = (
        f'<svg viewBox="0 0 860 {34 * len(rows)}" font-size="13" role="img" aria-label="weights">{"".join(rows)}</svg>'
    )
    told = (
        f"<p>Weighted held-out loss: {proposal.predicted:.4f} predicted, {proposal.baseline:.4f} with the baseline's "
        "weights.</p><small>Light: baseline. Dark: proposal; line: 90% of the proposals from resampled runs.</small>"
    )
    return page("Mixture", drawing, told)


def laws_page(laws: Laws, runs: Sequence[Run]) -> str:
    """Both laws over D, a line for each N, with bands, and the best run of each pair as a dot."""
    best: dict[tuple[float, float], Run] = {}
    for run in runs:
        at = (run.parameters, run.tokens)
        best[at] = min(best.get(at, run), run, key=lambda each: each.loss)
    return page(
        "Learning rate and batch size",
        _chart("learning rate", laws.lr, {at: run.lr for at, run in best.items()}),
        _chart("batch, tokens", laws.batch, {at: run.batch for at, run in best.items()}),
        f"<p>Misses of the fit: {laws.residual:.4f} nats.</p><small>Lines: the law for each model size, over tokens; "
        "bands: 90% of refits. Dots: the best run of each pair.</small>",
    )


def _chart(title: str, law: PowerLaw, dots: Mapping[tuple[float, float], float]) -> str:
    tokens = sorted({d for _, d in dots})
    sizes = sorted({n for n, _ in dots})
    grid = [tokens[0] * (tokens[-1] / tokens[0] * 4) ** (i / 24) for i in range(25)]  # on to four times the longest
    values = [*dots.values(), *(law(n, d) for n in sizes for d in grid)]
    low, high = math.log(min(values)) - 0.3, math.log(max(values)) + 0.3

    def x(d: float) -> float:
        return 80 + 620 * math.log(d / grid[0]) / math.log(grid[-1] / grid[0])

    def y(value: float) -> float:
        return 280 - 260 * (min(max(math.log(value), low), high) - low) / (high - low)

    parts = []
    for i, n in enumerate(sizes):
        colour = f"hsl({18 + 200 * i / max(len(sizes), 1):.0f} 60% 45%)"
        band = [law.interval(n, d) for d in grid]
        edge = [f"{x(d):.1f},{y(b[0]):.1f}" for d, b in zip(grid, band, strict=True)]
        edge += [f"{x(d):.1f},{y(b[1]):.1f}" for d, b in reversed(list(zip(grid, band, strict=True)))]
        line = " ".join(f"{x(d):.1f},{y(law(n, d)):.1f}" for d in grid)
        parts.append(f'<polygon points="{" ".join(edge)}" fill="{colour}" opacity=".15"/>')
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="706" y="{y(law(n, grid[-1])) + 4:.1f}">N = {n:.3g}</text>')
        parts += [
            f'<circle cx="{x(d):.1f}" cy="{y(v):.1f}" r="4" fill="{colour}"/>' for (m, d), v in dots.items() if m == n
        ]
    axis = [f'<text x="{x(d):.1f}" y="300" text-anchor="middle">{d:.2g}</text>' for d in (*tokens, grid[-1])]
    axis += [
        f'<text x="74" y="{y(math.exp(v)) + 4:.1f}" text-anchor="end">{math.exp(v):.2g}</text>'
        for v in (low, (low + high) / 2, high)
    ]
    between = law.intervals()
    formula = (
        f"{title} = {law.coefficient:.4g} N^{law.n_exponent:.3f} D^{law.d_exponent:.3f} (exponents "
        f"{between['n_exponent'][0]:.3f} to {between['n_exponent'][1]:.3f}, {between['d_exponent'][0]:.3f} to {between['d_exponent'][1]:.3f})"
    )
    return (
        f"<h2>{html.escape(formula)}</h2><svg viewBox='0 0 840 310' font-size='12' role='img' "
        f"aria-label='{html.escape(title)}'>{''.join(parts + axis)}</svg>"
    )
