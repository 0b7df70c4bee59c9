"""Rotary position embedding in one pass, without temporaries for concatenation."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

_tables: Any = WeakIdKeyDictionary()
"""Cached cosines and sines of angles, shared by all layers and steps."""


def rotary(x: Tensor, angles: Tensor, interleaved: bool = False) -> Tensor:
    """Rotate pairs (x[i], x[i + d/2]) by their angles (Su et al. 2021, equation 34, in the half-split order).

    Args:
        x: [s, b, heads, d].
        angles: radians, [s, b or 1, 1, d]: the pairs' angles, repeated twice.
        interleaved: not supported; required by Megatron's signature.
    """
    assert not interleaved
    assert angles.size(-1) == x.size(-1)
    table = _tables.get(angles)
    if table is None or table[0].dtype is not x.dtype:
        table = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        _tables[angles] = table
    turned: Tensor = _Rotary.apply(x, *table)
    return turned


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        cos, sin = ctx.saved_tensors
        return _rotate(gradient, cos, sin, -1), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    half = x.size(-1) // 2
    turned = x * cos
    turned[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-direction)
    turned[..., half:].addcmul_(x[..., :half], sin[..., half:], value=direction)
    return turned
