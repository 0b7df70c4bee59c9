"""Causal grouped-query attention for short sequences, using a few large matrix products instead of many small ones."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

BLOCK = 64
"""Positions per block of scores: work above the diagonal is wasted only within a block."""


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """softmax(scale * query @ key.T, up to the diagonal) @ value. Keeps the scores for backward.

    Args:
        query: [b, heads, s, d].
        key, value: [b, groups, s, d]; heads are a multiple of groups.
        scale: None for 1 / sqrt(d).

    Returns:
        [b, heads, s, d].
    """
    output: Tensor = _CausalAttention.apply(
        query, key, value, 1 / math.sqrt(query.size(-1)) if scale is None else scale
    )
    return output


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        b, groups, s, d = key.shape
        shared = query.size(1) // groups
        q = _by_group(query, groups, scale)
        k, v = (x.reshape(b * groups, s, d) for x in (key, value))
        output = torch.empty_like(q)
        probabilities = []
        for start, end in _blocks(s):
            rows = slice(start * shared, end * shared)
            p = torch.bmm(q[:, rows], k[:, :end].transpose(1, 2))
            later = p.new_full((end - start, end - start), -math.inf).triu(1)
            p[:, :, start:].add_(later.repeat_interleave(shared, dim=0))
            torch.softmax(p, dim=-1, out=p)
            torch.bmm(p, v[:, :end], out=output[:, rows])
            probabilities.append(p)
        ctx.save_for_backward(q, k, v, *probabilities)
        ctx.scale, ctx.shape = scale, query.shape
        return _by_head(output, query.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *probabilities = ctx.saved_tensors
        b, heads, s, d = ctx.shape
        groups = len(k) // b
        shared = heads // groups
        gradient = _by_group(gradients[0], groups)
        of_q, of_k, of_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (start, end), p in zip(_blocks(s), probabilities, strict=True):
            rows = slice(start * shared, end * shared)
            of_v[:, :end].baddbmm_(p.transpose(1, 2), gradient[:, rows])
            of_p = torch.bmm(gradient[:, rows], v[:, :end].transpose(1, 2))
            of_scores = torch._softmax_backward_data(of_p, p, -1, p.dtype, grad_input=of_p)
            torch.bmm(of_scores, k[:, :end], out=of_q[:, rows])
            of_k[:, :end].baddbmm_(of_scores.transpose(1, 2), q[:, rows])
        return _by_head(of_q.mul_(ctx.scale), ctx.shape), of_k.view(b, groups, s, d), of_v.view(b, groups, s, d), None


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + BLOCK, length)) for start in range(0, length, BLOCK))


def _by_group(x: Tensor, groups: int, factor: float = 1.0) -> Tensor:
    """[b, heads, s, d] -> [b * groups, s * heads / groups, d], times a factor: heads that share keys become
    adjacent."""
    b, heads, s, d = x.shape
    result = x.new_empty(b * groups, s * heads // groups, d)
    torch.mul(x.view(b, groups, -1, s, d).transpose(2, 3), factor, out=result.view(b, groups, s, -1, d))
    return result


def _by_head(x: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `_by_group`: [b, heads, s, d], a view."""
    b, heads, s, d = shape
    groups = len(x) // b
    return x.view(b, groups, s, -1, d).transpose(2, 3).reshape(shape) if heads != groups else x.view(shape)
