"""Dual chunk attention: RoPE sees only trained distances, however long the sequence.

With s = chunk_size - local_window, a key at i has position i mod s. A query at i has position i mod s for its own
chunk, min(i mod s + s, chunk_size) for the previous one, and the largest such position for older ones (An et al. 2024,
section 3; Qwen2 technical report, section 2.2.1). Within one chunk this is plain attention.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cupola_trainer.config.model.positions import DualChunk
from cupola_trainer.kernels.dual_chunk_attention import dual_chunk_attention
from cupola_trainer.kernels.rotary import rotary

BLOCK = 512
"""Queries per block when positions are not in order."""

Turns = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class DualChunks:
    """Attention of one layer over several chunks. RoPE has already rotated queries and keys by position in the
    chunk."""

    chunk: DualChunk
    frequencies: tuple[float, ...]
    """RoPE's inverse frequencies [head_dim / 2], in radians per position."""
    scale: float | None = None
    """Scale of the scores; None for 1 / sqrt(head_dim)."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, positions: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """See `Attend`. Positions are [b, q] and [b, k], or without b; None if the queries are the last positions."""
        scale = self.scale or 1 / math.sqrt(query.size(-1))
        places = torch.arange(key.size(2), device=key.device)
        of_queries, of_keys = positions or (places[key.size(2) - query.size(2) :], places)
        turns = self.turns(query, of_queries)
        if visible is None and query.size(2) == key.size(2):
            return dual_chunk_attention(turns, key, value, stride=self.chunk.stride, scale=scale)
        older = torch.atleast_2d(of_queries // self.chunk.stride)[:, :, None]
        back = older - torch.atleast_2d(of_keys // self.chunk.stride)[:, None]  # chunks between query and key [b, q, k]
        if visible is None:
            visible = torch.atleast_2d(of_queries)[:, :, None] >= torch.atleast_2d(of_keys)[:, None]
        visible = visible[:, 0] if visible.dim() == 4 else visible.expand_as(back)
        blocks = zip(
            zip(*(turn.split(BLOCK, dim=2) for turn in turns), strict=True),
            back.split(BLOCK, dim=1),
            visible.split(BLOCK, dim=1),
            strict=True,
        )
        return torch.cat([_attend(t, key, value, b, seen, scale) for t, b, seen in blocks], dim=2)

    def turns(self, query: Tensor, positions: Tensor) -> Turns:
        """Queries [b, heads, q, d], rotated for their own chunk, the previous one, and older ones."""
        stride, size = self.chunk.stride, self.chunk.chunk_size
        place = positions % stride
        before = (place + stride).clamp(max=size)
        older = torch.full_like(place, min(2 * stride - 1, size))
        return query, self._rotate(query, before - place), self._rotate(query, older - place)

    def _rotate(self, query: Tensor, by: Tensor) -> Tensor:
        frequencies = torch.tensor(self.frequencies, device=query.device)
        angles = torch.atleast_2d(by).t()[:, :, None, None] * torch.cat([frequencies, frequencies])  # [q, b, 1, d]
        return rotary(query.permute(2, 0, 1, 3), angles).permute(1, 2, 0, 3)


def _attend(turns: Turns, key: Tensor, value: Tensor, back: Tensor, visible: Tensor, scale: float) -> Tensor:
    """Attention of a block of queries over all keys: [b, heads, q, d]. `back` (chunks from query to key) and `visible`
    are [b, q, k]."""
    key, value = key[:, :, None], value[:, :, None]  # [b, groups, 1, k, d]
    own, before, older = (
        turn.unflatten(1, (key.size(1), -1)) @ key.transpose(-1, -2) for turn in turns
    )  # [b, groups, heads / groups, q, k]
    back, visible = back[:, None, None], visible[:, None, None]
    scores = torch.where(back == 0, own, torch.where(back == 1, before, older)) * scale
    scores = scores.masked_fill(~visible, -math.inf)
    wide = torch.float64 if scores.dtype is torch.float64 else torch.float32
    return (torch.softmax(scores, dim=-1, dtype=wide).to(value.dtype) @ value).flatten(1, 2)
