"""Dual chunk attention over a whole sequence, using fused attention per chunk: memory is linear in the length."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cupola_trainer.runtime import fused_attention

Part = tuple[int, slice, bool]
"""Index of the query rotation, the keys, and whether they are causal."""


def dual_chunk_attention(
    queries: tuple[Tensor, Tensor, Tensor], key: Tensor, value: Tensor, *, stride: int, scale: float
) -> Tensor:
    """One softmax over three parts: own chunk, previous chunk, all older ones (An et al. 2024, section 3).

    Each part is computed separately and combined by its log-sum-exp. Backward recomputes the scores.

    Args:
        queries: [b, heads, s, d] each, rotated for their own chunk, the previous one, and older ones.
        key, value: [b, groups, s, d]; heads are a multiple of groups.
        stride: tokens per chunk.

    Returns:
        [b, heads, s, d].
    """
    output: Tensor = _DualChunkAttention.apply(*queries, key, value, stride, scale)
    return output


class _DualChunkAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, own: Tensor, before: Tensor, older: Tensor, key: Tensor, value: Tensor, stride: int, scale: float
    ) -> Tensor:
        queries, shared = (own, before, older), own.size(1) // key.size(1)
        output = torch.empty_like(own)
        logsumexp = torch.empty(own.shape[:3], dtype=_wide(own.dtype), device=own.device)
        for rows, parts in _chunks(own.size(2), stride):
            outputs = [
                fused_attention.forward(
                    queries[turn][:, :, rows], *_repeated(key, value, keys, shared), causal=causal, scale=scale
                )
                for turn, keys, causal in parts
            ]
            whole = torch.logsumexp(torch.stack([each for _, each in outputs]), dim=0)
            logsumexp[:, :, rows] = whole
            output[:, :, rows] = sum(part * (each - whole).exp()[..., None] for part, each in outputs)
        ctx.save_for_backward(own, before, older, key, value, output, logsumexp)
        ctx.stride, ctx.scale = stride, scale
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        own, before, older, key, value, output, logsumexp = ctx.saved_tensors
        queries, groups = (own, before, older), key.size(1)
        of_queries = tuple(torch.zeros_like(query) for query in queries)
        of_key, of_value = torch.zeros_like(key), torch.zeros_like(value)
        for rows, parts in _chunks(own.size(2), ctx.stride):
            for turn, keys, causal in parts:
                of_query, of_k, of_v = fused_attention.backward(
                    gradients[0][:, :, rows],
                    queries[turn][:, :, rows],
                    *_repeated(key, value, keys, own.size(1) // groups),
                    output[:, :, rows],
                    logsumexp[:, :, rows],
                    causal=causal,
                    scale=ctx.scale,
                )
                of_queries[turn][:, :, rows] = of_query
                of_key[:, :, keys] += of_k.unflatten(1, (groups, -1)).sum(dim=2)
                of_value[:, :, keys] += of_v.unflatten(1, (groups, -1)).sum(dim=2)
        return *of_queries, of_key, of_value, None, None


def _chunks(length: int, stride: int) -> Iterator[tuple[slice, list[Part]]]:
    """Each chunk's rows, and the parts of their softmax."""
    for start in range(0, length, stride):
        rows = slice(start, min(start + stride, length))
        parts: list[Part] = [(0, rows, True)]
        if start:
            parts.append((1, slice(start - stride, start), False))
        if start > stride:
            parts.append((2, slice(0, start - stride), False))
        yield rows, parts


def _repeated(key: Tensor, value: Tensor, keys: slice, shared: int) -> tuple[Tensor, Tensor]:
    """Keys and values of one part, repeated for each query head."""
    return key[:, :, keys].repeat_interleave(shared, dim=1), value[:, :, keys].repeat_interleave(shared, dim=1)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype is torch.float64 else torch.float32
