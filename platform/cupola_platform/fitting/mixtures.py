"""Held-out loss as a function of the mixture, and the mixture that minimizes it.

Runs on mixtures r (points of the simplex) give each domain's held-out loss; per domain we fit the data mixing law
L = c + exp(t . r) (Ye et al. 2024, section 3; t absorbs their constant factor, because r sums to one), and propose the
r that minimizes the weighted mean of the domains' laws (RegMix, Liu et al. 2024, with this law instead of their trees,
which need more runs). The uncertainty comes from bootstrapping the runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares, minimize
from scipy.stats import spearmanr

from cupola_platform.errors import ConfigError

Array = NDArray[np.float64]
INTERVAL = (5.0, 95.0)
"""Percentiles of the resampled proposals."""


@dataclass(frozen=True)
class Law:
    """L = floor + exp(slopes . r)."""

    floor: float
    slopes: Array
    """Shape [domains]."""

    def __call__(self, mixture: Array) -> Array:
        """Loss at mixtures. Shape [..., domains] to [...]."""
        return self.floor + np.exp(mixture @ self.slopes)


@dataclass(frozen=True)
class Proposal:
    """The mixture to train on."""

    weights: dict[str, float]
    low: dict[str, float]
    """5th percentile over resampled runs."""
    high: dict[str, float]
    """95th percentile."""
    laws: dict[str, Law]
    residual: dict[str, float]
    """Root mean square residual of each law, in nats."""
    predicted: float
    """The weighted loss at the proposal."""
    baseline: float
    """The weighted loss at the first run's mixture."""
    measured: Array
    """Shape [runs, domains]."""
    left_out: Array
    """Leave-one-out predictions: each run's losses by laws fitted to the other runs. Shape [runs, domains]."""
    rank_correlation: float
    """Spearman's, between the runs' weighted losses and their `left_out` predictions: below about 0.5 the laws rank
    mixtures little better than chance. Zero if all are equal."""

    @property
    def error(self) -> float:
        """Root mean square error of `left_out`, in nats."""
        return float(np.sqrt(np.mean((self.left_out - self.measured) ** 2)))


def draw_mixtures(baseline: Sequence[float], count: int, seed: int, concentration: float = 4.0) -> Array:
    """`count` mixtures around a baseline, which comes first. Shape [count, domains].

    Drawn from Dirichlet distributions around the baseline, pulled towards equal weights so that small domains also
    vary.
    """
    center = np.asarray(baseline, float) / sum(baseline)
    pulled = 0.5 * center + 0.5 / len(center)
    drawn = np.random.default_rng(seed).dirichlet(concentration * len(center) * pulled, count - 1)
    return np.concatenate([center[None], drawn])


def fit_law(mixtures: Array, losses: Array) -> Law:
    """The law of one domain. Shapes [runs, domains], [runs]."""
    floor = max(0.5 * float(losses.min()), 1e-3)
    slopes, *_ = np.linalg.lstsq(mixtures, np.log(losses - floor), rcond=None)
    start = np.array([floor, *slopes])
    scale = max(float(np.ptp(losses)), 1e-6)

    def misses(parameters: Array) -> Array:
        fit = parameters[0] + np.exp(np.clip(mixtures @ parameters[1:], -20, 20)) - losses
        # a weak prior on the floor: without curvature in the runs, floor and slopes are not identifiable
        return np.append(fit / scale, 1e-3 * (parameters[0] - floor) / floor)

    bounds = ([0.0, *[-20.0] * len(slopes)], [float(losses.min()), *[20.0] * len(slopes)])
    fitted = least_squares(misses, np.clip(start, *bounds), bounds=bounds).x
    return Law(float(fitted[0]), fitted[1:])


def best_mixture(laws: Sequence[Law], targets: Array, most: Array) -> Array:
    """The mixture with the lowest weighted loss. `most`: the largest weight of each domain. Shapes [domains]."""
    start = np.minimum(most, 1 / len(most))
    start = start + (most - start) * (1 - start.sum()) / max((most - start).sum(), 1e-12)
    solution = minimize(
        lambda r: sum(share * float(law(r)) for share, law in zip(targets, laws, strict=True)),
        start,
        bounds=[(0.0, float(bound)) for bound in most],
        constraints={"type": "eq", "fun": lambda r: r.sum() - 1},
        method="SLSQP",
    )
    r = np.clip(solution.x, 0, most)
    return np.asarray(r / r.sum())


def propose(
    domains: Sequence[str],
    mixtures: Array,
    losses: Array,
    *,
    targets: Mapping[str, float] | None = None,
    most: Mapping[str, float] | None = None,
    resamples: int = 100,
    seed: int = 0,
) -> Proposal:
    """Fit every domain's law and propose a mixture.

    Args:
        mixtures, losses: shape [runs, domains] each; the first run's mixture is the baseline.
        targets: weight of each domain's loss; equal by default.
        most: the largest weight of each domain, as given by a cap on epochs.

    Raises:
        ConfigError: too few runs for the law, or caps that leave no mixture.
    """
    least = len(domains) + 2
    if len(mixtures) < least:
        raise ConfigError(f"{len(mixtures)} runs are too few for {len(domains)} domains. Train at least {least}.")
    shares = np.array([(targets or {}).get(name, 0.0 if targets else 1.0) for name in domains])
    bounds = np.array([min((most or {}).get(name, 1.0), 1.0) for name in domains])
    if bounds.sum() < 1:
        raise ConfigError(
            f"the caps on epochs leave {bounds.sum():.0%} of the samples. Raise max_epochs, or train shorter."
        )
    shares = shares / shares.sum()
    laws = [fit_law(mixtures, losses[:, d]) for d in range(len(domains))]
    weights = best_mixture(laws, shares, bounds)
    draws = np.random.default_rng(seed)
    others = []
    for _ in range(resamples):
        rows = draws.integers(0, len(mixtures), len(mixtures))
        if len(set(rows.tolist())) >= least:
            others.append(
                best_mixture([fit_law(mixtures[rows], losses[rows, d]) for d in range(len(domains))], shares, bounds)
            )
    left_out = np.array([_without(i, mixtures, losses) for i in range(len(mixtures))])
    low, high = np.percentile(others, INTERVAL, axis=0) if others else (weights, weights)
    return Proposal(
        weights=dict(zip(domains, weights.tolist(), strict=True)),
        low=dict(zip(domains, low.tolist(), strict=True)),
        high=dict(zip(domains, high.tolist(), strict=True)),
        laws=dict(zip(domains, laws, strict=True)),
        residual={
            name: float(np.sqrt(np.mean((laws[d](mixtures) - losses[:, d]) ** 2))) for d, name in enumerate(domains)
        },
        predicted=float(sum(share * law(weights) for share, law in zip(shares, laws, strict=True))),
        baseline=float(sum(share * law(mixtures[0]) for share, law in zip(shares, laws, strict=True))),
        measured=losses,
        left_out=left_out,
        rank_correlation=float(np.nan_to_num(spearmanr(losses @ shares, left_out @ shares).statistic)),
    )


def _without(run: int, mixtures: Array, losses: Array) -> Array:
    """A run's loss in each domain, predicted from the other runs. Shape [domains]."""
    others = np.arange(len(mixtures)) != run
    laws = (fit_law(mixtures[others], of[others]) for of in losses.T)
    return np.array([float(law(mixtures[run])) for law in laws])
