"""Causal grouped-query attention for long sequences on a CPU: torch's fused forward, and a backward made of large products.

torch's own backward multiplies one head at a time, with shapes that a CPU's matrix products like less, and takes
exponentials, which cost twice a power of two. `benchmarks/attention.py` compares the two.
"""

import math
from typing import Any

import torch
from torch import Tensor

from cupola_trainer.kernels.causal_attention import by_head
from cupola_trainer.runtime import fused_attention

TILE = 256
"""Queries and keys whose scores are computed together: what lies above the diagonal is wasted within a tile only."""

SCORES = 2**18
"""Scores that a thread holds at a time: with their gradients 2 MiB, which stays in the caches."""


def tiled_attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """softmax(scale * query @ key.T, up to the diagonal) @ value. Backward computes the scores again, tile by tile.

    Args:
        query: [b, heads, s, d].
        key, value: [b, groups, s, d]; heads are a multiple of groups.
        scale: none for 1 / sqrt(d).

    Returns:
        [b, heads, s, d].
    """
    output: Tensor = _TiledAttention.apply(query, key, value, 1 / math.sqrt(query.size(-1)) if scale is None else scale)
    return output


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        k, v = (x.repeat_interleave(query.size(1) // x.size(1), dim=1) for x in (key, value))
        output, logsumexp = fused_attention.forward(query, k, v, causal=True, scale=scale)
        ctx.save_for_backward(query, key, value, output, logsumexp)
        ctx.scale = scale
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, output, logsumexp = ctx.saved_tensors
        b, groups, s, d = key.shape
        base = math.log2(math.e)  # probabilities are powers of two
        # One column more subtracts in the products themselves: from scores their log-sum-exp, from gradients their mean.
        q = _widened(query, ctx.scale * base, logsumexp * -base, groups)
        g = _widened(gradients[0], 1.0, (gradients[0] * output).sum(-1).neg_(), groups)
        k, v = (_with_ones(x) for x in (key, value))
        of_q, of_k, of_v = _gradients(q, k, v, g, query.size(1) // groups)
        of_query = by_head(of_q[:, : s * query.size(1) // groups].mul_(ctx.scale), query.shape)
        of_key, of_value = (x[:, :s].reshape(b, groups, s, d) for x in (of_k.div_(base), of_v))
        return of_query, of_key, of_value, None


def _gradients(q: Tensor, k: Tensor, v: Tensor, g: Tensor, shared: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of queries, keys and values, before their scales.

    Args:
        q, g: queries and the output's gradients [n, s * shared, d + 1].
        k, v: [n, d + 1, s]; n of batch times groups, s a multiple of `TILE`.
        shared: heads of a group.

    Returns:
        [n, s * shared, d], [n, s, d], [n, s, d].
    """
    n, d, rows = len(q), q.size(2) - 1, TILE * shared
    tiles = k.size(2) // TILE
    turned_q, turned_g, rows_of_k = (x.transpose(1, 2).contiguous() for x in (q[..., :d], g[..., :d], k[:, :d]))
    of_q = q.new_zeros(tiles, n, rows, d)  # each tile in one piece: only into such does torch multiply batches at once
    of_k, of_v = (q.new_zeros(tiles, n, d, TILE) for _ in range(2))
    later = q.new_full((TILE, TILE), -math.inf).triu(1).repeat_interleave(shared, dim=0)
    pairs = [(i, j) for i in range(tiles) for j in range(i + 1)]
    together = max(1, SCORES * torch.get_num_threads() // (rows * TILE))
    for some in (slice(start, start + together) for start in range(0, n, together)):
        p = q.new_empty(len(q[some]), rows, TILE)
        of_p = torch.empty_like(p)
        for i, j in pairs:
            queries, keys = slice(i * rows, (i + 1) * rows), slice(j * TILE, (j + 1) * TILE)
            torch.bmm(q[some, queries], k[some, :, keys], out=p)
            if i == j:
                p.add_(later)
            p.exp2_()
            of_v[j, some].baddbmm_(turned_g[some, :, queries], p)
            torch.bmm(g[some, queries], v[some, :, keys], out=of_p)
            of_scores = of_p.mul_(p)
            of_q[i, some].baddbmm_(of_scores, rows_of_k[some, keys])
            of_k[j, some].baddbmm_(turned_q[some, :, queries], of_scores)
    return of_q.transpose(0, 1).flatten(1, 2), *(x.permute(1, 0, 3, 2).flatten(1, 2) for x in (of_k, of_v))


def _widened(x: Tensor, factor: float, column: Tensor, groups: int) -> Tensor:
    """[b, heads, s, d], times a factor, and [b, heads, s] -> [b * groups, s' * heads / groups, d + 1], heads that share
    keys side by side, and zeros to a whole number of tiles."""
    b, heads, s, d = x.shape
    result = x.new_zeros(b, groups, s + -s % TILE, heads // groups, d + 1)
    filled = result[:, :, :s].transpose(2, 3)
    torch.mul(x.unflatten(1, (groups, -1)), factor, out=filled[..., :d])
    filled[..., d] = column.unflatten(1, (groups, -1))
    return result.view(b * groups, -1, d + 1)


def _with_ones(x: Tensor) -> Tensor:
    """[b, groups, s, d] -> [b * groups, d + 1, s'], the last row ones, and zeros to a whole number of tiles."""
    b, groups, s, d = x.shape
    result = x.new_zeros(b * groups, d + 1, s + -s % TILE)
    result[:, :d, :s] = x.reshape(b * groups, s, d).transpose(1, 2)
    result[:, d, :s] = 1
    return result
