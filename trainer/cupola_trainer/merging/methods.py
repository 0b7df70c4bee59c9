"""Methods of merging one tensor of several models. Pure functions that compute in fp32, norms in fp64.

A task vector is a model's difference from its base: tau = theta - theta_base.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

COLLINEAR = 1e-6
"""Sine of the angle below which two vectors count as collinear, so that SLERP becomes linear."""


def average(thetas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_i w_i theta_i / sum_i w_i (model soups; for reward models WARM, Rame et al. 2024, equation 1)."""
    total = sum(weights)
    return _sum([theta.float() * (weight / total) for theta, weight in zip(thetas, weights, strict=True)])


def slerp(thetas: Sequence[Tensor], weights: Sequence[float], base: Tensor | None = None) -> Tensor:
    """Spherical interpolation of two tensors, or of their task vectors if there is a base (WARP, Rame et al. 2024,
    equation 3):

    sin((1 - t) W) / sin W a + sin(t W) / sin W b, with W the angle between a and b, and t = w_b / (w_a + w_b).

    More than two are merged one after another, the m-th with t = w_m / (w_1 + ... + w_m), which is 1/m for equal
    weights (WARP, appendix B.2). Collinear and zero vectors are interpolated linearly.
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
    """TIES (Yadav et al. 2023, algorithm 1): trim, elect signs, average those that agree.

    Each task vector keeps its elements of largest magnitude. An element's sign is elected by the weighted sum, and its
    value is the weighted mean over the trimmed vectors that have this sign.

    Args:
        smallest: smallest magnitude kept in each model, see `trimming.smallest_kept`.
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
    divided by it, or else dropped. The weighted average of the results is added to the base.

    Args:
        generator: returns the generator of the i-th model's mask for this tensor.
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
