"""Rotary position embedding."""

from typing import Any

import torch
from torch import Tensor

from ...absent import absent

apply_fused_qkv_rotary_pos_emb = absent("pytorch.attention.rope.apply_fused_qkv_rotary_pos_emb")


def apply_rotary_pos_emb(
    t: Tensor,
    freqs: Tensor,
    tensor_format: str = "sbhd",
    start_positions: Tensor | None = None,
    interleaved: bool = False,
    fused: bool = False,
    cu_seqlens: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Rotate t [s, b, h, d] by angles [s2, 1, 1, d2], one row of angles for all rows of t: s2 >= s and d2 <= d."""
    if tensor_format != "sbhd" or start_positions is not None or interleaved or not fused or cu_seqlens is not None:
        raise NotImplementedError("the stand-in for Transformer Engine rotates [s, b, h, d] only, in halves")
    if freqs.dim() != 4 or t.dim() != 4:
        raise RuntimeError("expected 4D tensor")
    if freqs.size(1) != 1 or freqs.size(2) != 1:
        raise RuntimeError("expected the second and third dims of the freqs tensor equal 1")
    if t.size(0) > freqs.size(0):
        raise RuntimeError("expected freqs tensor has a longer sequence length than input")
    if t.size(3) < freqs.size(3):
        raise RuntimeError("expected the last dim of the input tensor equals or is greater than the freqs tensor")
    angles = freqs[: t.size(0)].float()
    turned, rest = t.split([angles.size(3), t.size(3) - angles.size(3)], dim=3)
    first, second = turned.chunk(2, dim=3)
    rotated = turned * angles.cos() + torch.cat([-second, first], dim=3) * angles.sin()
    return torch.cat([rotated.to(t.dtype), rest], dim=3)
