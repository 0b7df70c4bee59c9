"""The best learning rate and batch size as power laws of model size N and data size D, from small runs.

Around the optimum a run's loss is a parabola in log lr and in log B. All runs are fitted together by

    L = L(N, D) + k_lr (log lr - log lr*)^2 + k_B (log B - log B*)^2,
    lr* = a N^b D^c,  B* = d N^e D^f,

with a free L(N, D) for every pair and shared positive curvatures. That lr* and B* follow power laws in N and D is
Qwen2.5's finding (technical report, section 3.2), whose coefficients are unpublished. The uncertainty comes from
resampling the runs' residuals.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from cupola_platform.errors import ConfigError

Array = NDArray[np.float64]

MAX_EXPONENT = 4.0
"""Bound on the exponents of N and D, in absolute value. Without it, runs that do not constrain a setting would let its
optimum overflow."""

BEYOND = 100.0
"""The factor by which an optimum may lie outside the settings tried, at the middle of the sizes and lengths."""


@dataclass(frozen=True)
class Run:
    """One small training run."""

    parameters: float
    """N."""
    tokens: float
    """D."""
    lr: float
    batch: float
    """B, in tokens."""
    loss: float
    """Held-out loss, in nats per token."""


@dataclass(frozen=True)
class PowerLaw:
    """coefficient * N^n_exponent * D^d_exponent, with the uncertainty of all three."""

    coefficient: float
    n_exponent: float
    d_exponent: float
    samples: Array
    """Refits to resampled residuals: log coefficient and both exponents. Shape [resamples, 3]."""

    def __call__(self, parameters: float, tokens: float) -> float:
        return float(self.coefficient * parameters**self.n_exponent * tokens**self.d_exponent)

    def interval(self, parameters: float, tokens: float) -> tuple[float, float]:
        """5th and 95th percentile of the prediction."""
        logs = self.samples @ np.array([1.0, np.log(parameters), np.log(tokens)])
        low, high = np.exp(np.percentile(logs, [5, 95]))
        return float(low), float(high)

    def as_dict(self) -> dict[str, Any]:
        """The law as JSON."""
        return asdict(self) | {"samples": self.samples.tolist(), "intervals": self.intervals()}

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> "PowerLaw":
        """The reverse of `as_dict`."""
        return cls(stored["coefficient"], stored["n_exponent"], stored["d_exponent"], np.array(stored["samples"]))

    def intervals(self) -> dict[str, tuple[float, float]]:
        """5th and 95th percentile of the coefficient and both exponents."""
        low, high = np.percentile(self.samples, [5, 95], axis=0)
        pairs = list(zip(low.tolist(), high.tolist(), strict=True))
        return {
            "coefficient": (float(np.exp(pairs[0][0])), float(np.exp(pairs[0][1]))),
            "n_exponent": pairs[1],
            "d_exponent": pairs[2],
        }


@dataclass(frozen=True)
class Laws:
    """Both fitted laws."""

    lr: PowerLaw
    batch: PowerLaw
    residual: float
    """Root mean square residual, in nats."""
    fitted: Array
    """The fitted loss of each run. Shape [runs]."""


def at_edges(runs: Sequence[Run]) -> dict[str, list[tuple[float, float]]]:
    """Pairs (N, D) whose best run has the smallest or largest learning rate (`lr`) or batch tried: the optimum may lie
    outside."""
    edges: dict[str, list[tuple[float, float]]] = {"lr": [], "batch": []}
    for pair in sorted({(run.parameters, run.tokens) for run in runs}):
        of_pair = [run for run in runs if (run.parameters, run.tokens) == pair]
        best = min(of_pair, key=lambda run: run.loss)
        for name, pairs in edges.items():
            tried = [getattr(run, name) for run in of_pair]
            if getattr(best, name) in (min(tried), max(tried)):
                pairs.append(pair)
    return edges


def fit_laws(runs: Sequence[Run], *, resamples: int = 100, seed: int = 0) -> Laws:
    """Fit both laws.

    Raises:
        ConfigError: the runs do not determine the coefficients: fewer than two sizes or lengths, or three rates or
            batches.
    """
    _check(runs)
    n, d, lr, batch, loss = np.log(np.array([[run.parameters, run.tokens, run.lr, run.batch, 1.0] for run in runs])).T
    loss = np.array([run.loss for run in runs])
    pairs, cell = np.unique(np.stack([n, d]), axis=1, return_inverse=True)
    cell = cell.reshape(-1)
    centers = pairs.mean(axis=1)
    design = np.stack([np.ones_like(n), n - centers[0], d - centers[1]])  # [3, runs]
    scale = max(float(np.ptp(loss)), 1e-9)
    bounds = _bounds(lr, batch, pairs.shape[1])
    start = np.clip(_start(design, lr, batch, loss, cell, pairs.shape[1]), *bounds)

    def predicted(parameters: Array) -> Array:
        levels, curvatures, rate, size = np.split(parameters, [pairs.shape[1], pairs.shape[1] + 2, pairs.shape[1] + 5])
        bends = np.exp(curvatures)
        return np.asarray(levels[cell] + bends[0] * (lr - rate @ design) ** 2 + bends[1] * (batch - size @ design) ** 2)

    def fitted(targets: Array, begin: Array) -> Array:
        return np.asarray(
            least_squares(
                lambda p: (predicted(p) - targets) / scale, begin, bounds=bounds, x_scale="jac", max_nfev=2000
            ).x
        )

    best = fitted(loss, start)
    misses = loss - predicted(best)
    draws = np.random.default_rng(seed)
    # a fit's residuals are smaller than the noise: correct for its degrees of freedom
    spread = misses * np.sqrt(len(runs) / max(len(runs) - len(best), 1))
    again = [fitted(predicted(best) + draws.choice(spread, len(runs)), best)[-6:] for _ in range(resamples)]
    samples = np.array(again).reshape(-1, 2, 3)
    return Laws(
        lr=_power_law(best[-6:-3], samples[:, 0], centers),
        batch=_power_law(best[-3:], samples[:, 1], centers),
        residual=float(np.sqrt(np.mean(misses**2))),
        fitted=predicted(best),
    )


def _bounds(lr: Array, batch: Array, cells: int) -> tuple[Array, Array]:
    """Bounds on each pair's level, the logs of both curvatures, and both laws."""
    sides = []
    for side, end in ((-1.0, np.min), (1.0, np.max)):
        law = [np.array([end(of) + side * np.log(BEYOND), *2 * [side * MAX_EXPONENT]]) for of in (lr, batch)]
        sides.append(np.concatenate([np.full(cells, side * np.inf), np.full(2, side * 20.0), *law]))
    return sides[0], sides[1]


def _start(design: Array, lr: Array, batch: Array, loss: Array, cell: NDArray[np.int64], cells: int) -> Array:
    """Starting values: each pair's best run, and the plane through their settings."""
    best = np.array([np.flatnonzero(cell == c)[np.argmin(loss[cell == c])] for c in range(cells)])
    rate, *_ = np.linalg.lstsq(design[:, best].T, lr[best], rcond=None)
    size, *_ = np.linalg.lstsq(design[:, best].T, batch[best], rcond=None)
    bend = np.log(max(float(np.ptp(loss)), 1e-9) / max(float(np.ptp(lr)) ** 2, 1e-9))
    return np.array([*loss[best], bend, bend, *rate, *size])


def _power_law(fitted: Array, samples: Array, centers: Array) -> PowerLaw:
    """A law in uncentred N and D."""
    shift = np.array([1.0, -centers[0], -centers[1]])
    plain = np.column_stack([samples @ shift, samples[:, 1:]])
    return PowerLaw(float(np.exp(fitted @ shift)), float(fitted[1]), float(fitted[2]), plain)


def check_design(sizes: int, tokens: Sequence[float], rates: Sequence[float], batches: Sequence[float]) -> None:
    """Refuse a plan of runs that cannot determine the laws. Raises ConfigError."""
    for name, count, least in (
        ("model sizes", sizes, 2),
        ("numbers of tokens", len(set(tokens)), 2),
        ("learning rates", len(set(rates)), 3),
        ("batch sizes", len(set(batches)), 3),
    ):
        if count < least:
            raise ConfigError(f"{count} different {name} cannot determine a power law. Give at least {least}.")


def _check(runs: Sequence[Run]) -> None:
    check_design(
        len({run.parameters for run in runs}),
        [run.tokens for run in runs],
        [run.lr for run in runs],
        [run.batch for run in runs],
    )
    needed = len({(run.parameters, run.tokens) for run in runs}) + 8
    if len(runs) <= needed:
        raise ConfigError(f"{len(runs)} runs are too few for {needed} coefficients. Give more rates or batch sizes.")
