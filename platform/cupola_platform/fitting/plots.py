"""Pages that show fitted laws."""

import colorsys
import math
from collections import Counter
from collections.abc import Mapping, Sequence

from cupola_platform.fitting.mixtures import Proposal
from cupola_platform.fitting.scaling import Laws, PowerLaw, Run
from cupola_platform.reports.charts import DARK, GREY, LIGHT, Chart, cut
from cupola_platform.reports.page import escape, page

BEYOND = 4
"""How far a law is drawn past the longest run, as a factor of its tokens."""


def mixture_page(proposal: Proposal, baseline: Mapping[str, float]) -> str:
    """Each domain's weight before and as proposed, with its interval."""
    return page(
        "Mixture",
        _weights(proposal, baseline),
        f"<p>Weighted held-out loss: {proposal.predicted:.4f} predicted, {proposal.baseline:.4f} with the baseline's "
        "weights.</p><small>Light: baseline. Dark: proposal; line: 90% of the proposals from resampled runs.</small>",
        f"<h2>Each run's loss, as the other runs predict it</h2>{_agreement(proposal)}<p>Off by {proposal.error:.4f} "
        "nats (root mean "
        "square); the order of the mixtures agrees by a rank correlation of "
        f"{proposal.rank_correlation:.2f}.</p><small>A dot for each "
        "run and source: right measured, up predicted. On the line they agree.</small>",
    )


def _weights(proposal: Proposal, baseline: Mapping[str, float]) -> str:
    names = list(proposal.weights)
    with Chart("weights", height=34 * len(names) + 12) as chart:
        for at, (name, weight) in enumerate(proposal.weights.items()):
            low, high = proposal.low[name], proposal.high[name]
            chart.axes.barh(at - 0.17, baseline[name], 0.28, color=LIGHT)
            drawn = chart.axes.barh(at + 0.17, weight, 0.28, color=DARK)
            chart.hint(drawn.patches[0], name)
            chart.axes.hlines(at + 0.17, low, high, color=GREY, linewidth=2)
            note = f"{weight:.1%} ({low:.0%} to {high:.0%})"
            chart.axes.annotate(
                note, (max(high, weight, baseline[name]), at), (8, 0), textcoords="offset points", va="center"
            )
        chart.axes.set_yticks(range(len(names)), map(cut, names))
        chart.axes.set_ylim(len(names) - 0.4, -0.6)
        chart.axes.set_xlim(0, max([*baseline.values(), *proposal.weights.values(), *proposal.high.values()]))
        chart.axes.set_xticks([])
        chart.axes.tick_params(length=0)
        chart.axes.spines[:].set_visible(False)
    return chart.svg


def _agreement(proposal: Proposal) -> str:
    both = [*proposal.measured.ravel().tolist(), *proposal.left_out.ravel().tolist()]
    names = list(proposal.weights)
    with Chart("measured and predicted losses", width=600, height=400) as chart:
        chart.axes.axline((min(both), min(both)), slope=1, color=GREY)
        for i, name in enumerate(names):
            chart.axes.plot(
                proposal.measured[:, i].tolist(),
                proposal.left_out[:, i].tolist(),
                "o",
                color=_colour(i, len(names)),
                alpha=0.8,
                label=cut(name),
            )
        chart.axes.set_xlabel("measured")
        chart.axes.set_ylabel("predicted")
        chart.legend()
    return chart.svg


def laws_page(laws: Laws, runs: Sequence[Run]) -> str:
    """Both laws over D, one line with its band per N, and the best run of each pair as a dot."""
    pairs = _by_pair(list(zip(runs, laws.fitted.tolist(), strict=True)))
    best = {pair: min((run for run, _ in of), key=lambda run: run.loss) for pair, of in pairs.items()}
    return page(
        "Learning rate and batch size",
        _law("learning rate", laws.lr, {at: run.lr for at, run in best.items()}),
        _law("batch, tokens", laws.batch, {at: run.batch for at, run in best.items()}),
        "<small>Lines: the law for each model size, over tokens; bands: 90% of refits. Dots: the best run of each "
        "pair.</small>",
        _bowls("learning rate", "lr", "batch", laws, runs),
        _bowls("batch, tokens", "batch", "lr", laws, runs),
        f"<p>Misses of the fit: {laws.residual:.4f} nats.</p><small>Dots: runs. Lines: the fit. A colour for each "
        "model size, fainter for "
        "fewer tokens.</small>",
    )


def _law(title: str, law: PowerLaw, dots: Mapping[tuple[float, float], float]) -> str:
    tokens = sorted({d for _, d in dots})
    sizes = sorted({n for n, _ in dots})
    grid = [tokens[0] * (tokens[-1] / tokens[0] * BEYOND) ** (i / 24) for i in range(25)]
    with Chart(title, height=320) as chart:
        axes = chart.axes
        for i, n in enumerate(sizes):
            colour, band = _colour(i, len(sizes)), [law.interval(n, d) for d in grid]
            axes.fill_between(grid, [low for low, _ in band], [high for _, high in band], color=colour, alpha=0.15)
            (line,) = axes.plot(grid, [law(n, d) for d in grid], color=colour, label=f"N = {n:.3g}")
            chart.hint(line, f"N = {n:.3g}")
            of_size = [(d, value) for (m, d), value in dots.items() if m == n]
            axes.plot(*zip(*of_size, strict=True), "o", color=colour)
        values = [*dots.values(), *(law(n, d) for n in sizes for d in grid)]
        chart.logarithmic("x", "y")
        axes.set(xlabel="tokens", ylabel=title)
        axes.set_ylim(min(values) * math.exp(-0.3), max(values) * math.exp(0.3))
        chart.legend()
    between = law.intervals()
    formula = (
        f"{title} = {law.coefficient:.4g} N^{law.n_exponent:.3f} D^{law.d_exponent:.3f} (exponents "
        f"{between['n_exponent'][0]:.3f} to {between['n_exponent'][1]:.3f}, {between['d_exponent'][0]:.3f} to "
        f"{between['d_exponent'][1]:.3f})"
    )
    return f"<h2>{escape(formula)}</h2>{chart.svg}"


def _bowls(title: str, setting: str, fixed: str, laws: Laws, runs: Sequence[Run]) -> str:
    """Loss above the pair's minimum over one setting: one line per pair, from its runs with the most common value of
    the other setting."""
    pairs = _by_pair(list(zip(runs, laws.fitted.tolist(), strict=True)))
    sizes, lengths = (sorted({pair[i] for pair in pairs}) for i in (0, 1))
    with Chart(f"loss over {title}", height=320) as chart:
        for (n, d), of in pairs.items():
            middle = _most_common([getattr(run, fixed) for run, _ in of])
            shown = sorted((getattr(run, setting), run.loss, fit) for run, fit in of if getattr(run, fixed) == middle)
            least = min(fit for *_, fit in shown)
            values = [value for value, *_ in shown]
            colour, faint = _colour(sizes.index(n), len(sizes)), 0.3 + 0.7 * (lengths.index(d) + 1) / len(lengths)
            (line,) = chart.axes.plot(values, [fit - least for *_, fit in shown], color=colour, alpha=faint)
            chart.hint(line, f"N = {n:.3g}, D = {d:.3g}")
            chart.axes.plot(
                values, [loss - least for _, loss, _ in shown], "o", markersize=4, color=colour, alpha=faint
            )
        chart.logarithmic("x")
        chart.axes.set(xlabel=title, ylabel="nats")
    return f"<h2>Held-out loss above the least of each pair, over {escape(title)}</h2>{chart.svg}"


def _by_pair(runs: Sequence[tuple[Run, float]]) -> dict[tuple[float, float], list[tuple[Run, float]]]:
    """Runs with their fitted losses, by N and D."""
    pairs: dict[tuple[float, float], list[tuple[Run, float]]] = {}
    for run, fit in runs:
        pairs.setdefault((run.parameters, run.tokens), []).append((run, fit))
    return pairs


def _most_common(values: Sequence[float]) -> float:
    ((value, _),) = Counter(values).most_common(1)
    return value


def _colour(number: int, count: int) -> tuple[float, float, float]:
    """One of `count` hues, from rust through green to blue."""
    hue = (18 + 200 * number / max(count - 1, 1)) / 360
    return colorsys.hls_to_rgb(hue, 0.45, 0.6)
