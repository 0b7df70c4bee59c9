"""How one tensor is made of the same tensor in several models. Pure functions; all compute in fp32, norms in fp64.

A task vector is what a model has learned since a base: tau = theta - theta_base.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

COLLINEAR = 1e-6
"""Sine of the angle under which two vectors count as collinear: SLERP is then linear."""


def average(thetas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_i w_i theta_i / sum_i w_i (model soups; WARM, Rame et al. 2024, equation 1: of reward models)."""
    total = sum(weights)
    return _sum([theta.float() * (weight / total) for theta, weight in zip(thetas, weights, strict=True)])


def slerp(thetas: Sequence[Tensor], weights: Sequence[float], base: Tensor | None = None) -> Tensor:
    """Spherical interpolation of two tensors, or with a base of their task vectors (WARP, Rame et al. 2024,
    equation 3):

    sin((1 - t) W) / sin W a + sin(t W) / sin W b, with W the angle between a and b, and t = w_b / (w_a + w_b).

    More than two are taken in one after the other, the m-th with t = w_m / (w_1 + ... + w_m): 1/m where all weigh the
    same (WARP, appendix B.2). Collinear ones, and zeros, are interpolated linearly.
    """
    vectors = [theta.float() for theta in thetas] if base is None else task_vectors(thetas, base)
    merged, total = vectors[0], weights[0]
    for vector, weight in zip(vectors[1:], weights[1:], strict=True):
        total += weight
        merged = _slerp(merged, vector, weight / total if total else 0.0)
    return merged if base is None else base.float() + merged


def ties(
    thetas: Sequence[Tensor], weights: Sequence[float], base: Tensor, *, smallest: Sequence[float], scale: float = 1.0
) -> Tensor:
    """TIES (Yadav et al. 2023, algorithm 1): trim, elect signs, take the mean of those that agree.

    Each task vector keeps its elements of largest magnitude; an element's sign is that of the weighted sum; the mean,
    by weight, is over the trimmed vectors that are not zero there and have that sign.

    Args:
        smallest: magnitude of each model that is kept at least, see `trimming.smallest_kept`.
    """
    pairs = zip(task_vectors(thetas, base), smallest, strict=True)
    trimmed = [torch.where(vector.abs() >= least, vector, 0) for vector, least in pairs]
    elected = _sum([vector * weight for vector, weight in zip(trimmed, weights, strict=True)]).sign()
    total, weight_of = torch.zeros_like(elected), torch.zeros_like(elected)
    for vector, weight in zip(trimmed, weights, strict=True):
        agrees = (vector.sign() == elected) & (vector != 0)
        total += torch.where(agrees, vector * weight, 0)
        weight_of += torch.where(agrees, weight, 0.0)
    mean = torch.where(weight_of > 0, total / weight_of, 0)
    return base.float() + scale * mean


def dare(
    thetas: Sequence[Tensor],
    weights: Sequence[float],
    base: Tensor,
    *,
    density: float,
    generator: Callable[[int], torch.Generator],
    scale: float = 1.0,
) -> Tensor:
    """DARE (Yu et al. 2024, equations 2 to 4): each element of a task vector is kept with probability `density` and
    then divided by it; the rest is dropped. What comes of it is averaged by weight and added to the base.

    Args:
        generator: of the i-th model's mask, for this tensor.
    """
    kept = []
    for i, vector in enumerate(task_vectors(thetas, base)):
        mask = torch.rand(vector.shape, generator=generator(i)) < density
        kept.append(torch.where(mask, vector / density, 0))
    return base.float() + scale * average(kept, weights)


def task_vectors(thetas: Sequence[Tensor], base: Tensor) -> list[Tensor]:
    """theta_i - theta_base."""
    return [theta.float() - base.float() for theta in thetas]


def _slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    length = a.double().norm() * b.double().norm()
    cosine = float((a.double() * b.double()).sum() / length) if length > 0 else 1.0
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    if math.sin(angle) < COLLINEAR:
        return (1 - t) * a + t * b
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total += tensor
    return total
