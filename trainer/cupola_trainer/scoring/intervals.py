"""Confidence intervals of accuracies. Imports no torch."""

import math
from typing import NamedTuple

Z95 = 1.959963984540054
"""Two-sided 95% quantile of the normal distribution."""


class Interval(NamedTuple):
    low: float
    high: float


def wilson(correct: int, total: int, z: float = Z95) -> Interval:
    """Wilson's score interval for a proportion (Wilson 1927), valid at 0, at 1 and for few trials.

    Without trials it is (0, 1).

    Raises:
        ValueError: not 0 <= correct <= total.
    """
    if not 0 <= correct <= total:
        raise ValueError(f"correct={correct} of total={total} is not a proportion: give 0 <= correct <= total.")
    if total == 0:
        return Interval(0.0, 1.0)
    p, z2 = correct / total, z * z
    centre = p + z2 / (2 * total)
    half = z * math.sqrt(p * (1 - p) / total + z2 / (4 * total * total))
    scale = 1 + z2 / total
    return Interval(max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale))


def difference(a_correct: int, a_total: int, b_correct: int, b_total: int, z: float = Z95) -> Interval:
    """Newcombe's hybrid score interval for accuracy a minus accuracy b on independent trials (Newcombe 1998,
    method 10).

    Without trials on either side it is (-1, 1).

    Raises:
        ValueError: a count is not between 0 and its total.
    """
    a, b = wilson(a_correct, a_total, z), wilson(b_correct, b_total, z)
    if not a_total or not b_total:
        return Interval(-1.0, 1.0)
    p_a, p_b = a_correct / a_total, b_correct / b_total
    below = math.hypot(p_a - a.low, b.high - p_b)
    above = math.hypot(a.high - p_a, p_b - b.low)
    return Interval(p_a - p_b - below, p_a - p_b + above)
