"""Pages that show fitted laws: SVG and HTML without anything from elsewhere."""

import html
import math
from collections import Counter
from collections.abc import Mapping, Sequence

from cupola_platform.fitting.mixtures import Proposal
from cupola_platform.fitting.scaling import Laws, PowerLaw, Run
from cupola_platform.reports.page import page


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
    check = (
        f"<h2>Each run's loss, as the other runs predict it</h2>{_agreement(proposal)}<p>Off by {proposal.error:.4f} nats (root mean "
        f"square); the order of the mixtures agrees by a rank correlation of {proposal.rank_correlation:.2f}.</p><small>A dot a run and "
        "source: right measured, up predicted. On the line they agree.</small>"
    )
    return page("Mixture", drawing, told, check)


def _agreement(proposal: Proposal) -> str:
    both = [*proposal.measured.ravel().tolist(), *proposal.left_out.ravel().tolist()]
    low, high = min(both), max(both)
    low, high = low - 0.05 * (high - low), high + 0.05 * (high - low) + 1e-9

    def at(value: float) -> float:
        return 300 * (value - low) / (high - low)

    names = list(proposal.weights)
    parts = ['<line x1="80" y1="310" x2="380" y2="10" stroke="#8a827b"/>']
    for i, name in enumerate(names):
        fill = _colour(i, len(names))
        parts.append(
            f'<circle cx="420" cy="{30 + 22 * i}" r="5" fill="{fill}"/><text x="432" y="{34 + 22 * i}">{html.escape(name)}</text>'
        )
        parts += [
            f'<circle cx="{80 + at(x):.1f}" cy="{310 - at(y):.1f}" r="4" fill="{fill}" opacity=".8"/>'
            for x, y in zip(proposal.measured[:, i].tolist(), proposal.left_out[:, i].tolist(), strict=True)
        ]
    for value in (low, (low + high) / 2, high):
        parts.append(f'<text x="{80 + at(value):.1f}" y="328" text-anchor="middle">{value:.2f}</text>')
        parts.append(f'<text x="74" y="{314 - at(value):.1f}" text-anchor="end">{value:.2f}</text>')
    return f'<svg viewBox="0 0 860 334" font-size="12" role="img" aria-label="measured and predicted losses">{"".join(parts)}</svg>'


def _colour(number: int, count: int) -> str:
    return f"hsl({18 + 200 * number / max(count - 1, 1):.0f} 60% 45%)"


def laws_page(laws: Laws, runs: Sequence[Run]) -> str:
    """Both laws over D, a line for each N, with bands, and the best run of each pair as a dot."""
    pairs = _by_pair(list(zip(runs, laws.fitted.tolist(), strict=True)))
    best = {pair: min((run for run, _ in of), key=lambda run: run.loss) for pair, of in pairs.items()}
    return page(
        "Learning rate and batch size",
        _chart("learning rate", laws.lr, {at: run.lr for at, run in best.items()}),
        _chart("batch, tokens", laws.batch, {at: run.batch for at, run in best.items()}),
        "<small>Lines: the law for each model size, over tokens; bands: 90% of refits. Dots: the best run of each pair.</small>",
        _bowls("learning rate", "lr", "batch", laws, runs),
        _bowls("batch, tokens", "batch", "lr", laws, runs),
        f"<p>Misses of the fit: {laws.residual:.4f} nats.</p><small>Dots: runs. Lines: the fit. A colour for each model size, fainter for "
        "fewer tokens.</small>",
    )


def _bowls(title: str, setting: str, fixed: str, laws: Laws, runs: Sequence[Run]) -> str:
    """Loss above the pair's least over one setting, a line a pair, of its runs with the most common value of the other setting."""
    rows = []
    for pair, of in _by_pair(list(zip(runs, laws.fitted.tolist(), strict=True))).items():
        middle = _most_common([getattr(run, fixed) for run, _ in of])
        shown = [(getattr(run, setting), run.loss, fit) for run, fit in of if getattr(run, fixed) == middle]
        least = min(fit for *_, fit in shown)
        rows.append((pair, sorted((math.log(value), loss - least, fit - least) for value, loss, fit in shown)))
    values = [value for _, of in rows for value, *_ in of]
    losses = [loss for _, of in rows for _, *both in of for loss in both]
    left, bottom = min(values), min(losses)
    width, height = max(values) - left or 1, max(losses) - bottom or 1
    sizes, lengths = (sorted({pair[i] for pair, _ in rows}) for i in (0, 1))

    def x(value: float) -> float:
        return 80 + 620 * (value - left) / width

    def y(loss: float) -> float:
        return 280 - 260 * (loss - bottom) / height

    parts = []
    for (n, d), points in rows:
        colour, faint = _colour(sizes.index(n), len(sizes)), 0.3 + 0.7 * (lengths.index(d) + 1) / len(lengths)
        line = " ".join(f"{x(value):.1f},{y(fit):.1f}" for value, _, fit in points)
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2" opacity="{faint:.2f}"/>'
        )
        parts += [
            f'<circle cx="{x(value):.1f}" cy="{y(loss):.1f}" r="3" fill="{colour}" opacity="{faint:.2f}"/>'
            for value, loss, _ in points
        ]
    parts += [
        f'<text x="{x(value):.1f}" y="300" text-anchor="middle">{math.exp(value):.2g}</text>'
        for value in (left, left + width / 2, left + width)
    ]
    parts += [
        f'<text x="74" y="{y(loss) + 4:.1f}" text-anchor="end">{loss:.3f}</text>' for loss in (bottom, bottom + height)
    ]
    return (
        f"<h2>Held-out loss above the least of each pair, over {html.escape(title)}</h2><svg viewBox='0 0 840 310' font-size='12' "
        f"role='img' aria-label='loss over {html.escape(title)}'>{''.join(parts)}</svg>"
    )


def _by_pair(runs: Sequence[tuple[Run, float]]) -> dict[tuple[float, float], list[tuple[Run, float]]]:
    """Runs, each with its fitted loss, by N and D."""
    found: dict[tuple[float, float], list[tuple[Run, float]]] = {}
    for run, fit in runs:
        found.setdefault((run.parameters, run.tokens), []).append((run, fit))
    return found


def _most_common(values: Sequence[float]) -> float:
    ((value, _),) = Counter(values).most_common(1)
    return value


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

    parts, labels = [], list[tuple[float, str]]()
    for i, n in enumerate(sizes):
        colour = _colour(i, len(sizes))
        band = [law.interval(n, d) for d in grid]
        edge = [f"{x(d):.1f},{y(b[0]):.1f}" for d, b in zip(grid, band, strict=True)]
        edge += [f"{x(d):.1f},{y(b[1]):.1f}" for d, b in reversed(list(zip(grid, band, strict=True)))]
        line = " ".join(f"{x(d):.1f},{y(law(n, d)):.1f}" for d in grid)
        parts.append(f'<polygon points="{" ".join(edge)}" fill="{colour}" opacity=".15"/>')
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        labels.append((y(law(n, grid[-1])) + 4, f"N = {n:.3g}"))
        parts += [
            f'<circle cx="{x(d):.1f}" cy="{y(v):.1f}" r="4" fill="{colour}"/>' for (m, d), v in dots.items() if m == n
        ]
    height = -math.inf
    for at, label in sorted(labels):  # none on top of another
        height = max(at, height + 13)
        parts.append(f'<text x="706" y="{height:.1f}">{label}</text>')
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
