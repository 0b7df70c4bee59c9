"""Sample the next token from a model's logits."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cupola_platform.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Settings of sampling."""

    max_new_tokens: int = 64
    temperature: float = 1.0
    """0 for greedy decoding."""
    top_p: float = 1.0
    """Sample from the smallest set of most likely tokens with at least this total probability; 1 for all."""
    top_k: int = 0
    """Sample from this many most likely tokens; 0 for all."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens={self.max_new_tokens} must be at least 1. Raise it.")
        if not self.temperature >= 0:
            raise ConfigError(f"temperature={self.temperature} must not be negative. Use 0 for greedy decoding.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} must be above 0 and at most 1. Use 1 for all tokens.")
        if self.top_k < 0:
            raise ConfigError(f"top_k={self.top_k} must not be negative. Use 0 for all tokens.")


def uniforms(seed: int, streams: list[int], count: int) -> Tensor:
    """`count` uniform numbers in [0, 1) per stream [b, count]; each row depends only on (seed, stream)."""
    rows = [np.random.Generator(np.random.Philox(key=[seed % 2**64, stream])).random(count) for stream in streams]
    return torch.from_numpy(np.stack(rows))


def choose(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """Sample one token per row by inverting the cumulative distribution at `uniform`.

    Temperature is applied first, then top-k, then top-p.

    Args:
        logits: [b, vocabulary].
        uniform: [b], float64, in [0, 1).

    Returns:
        [b] token ids.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = torch.softmax(logits / sampling.temperature, dim=-1)
    if sampling.top_k == 0 and sampling.top_p == 1:
        return _invert(probabilities, uniform)
    kept, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k:
        kept[:, sampling.top_k :] = 0
        kept = kept / kept.sum(dim=-1, keepdim=True)
    before = kept.cumsum(dim=-1) - kept
    kept = kept.masked_fill(before >= sampling.top_p, 0)
    return tokens.gather(1, _invert(kept, uniform)[:, None])[:, 0]


BLOCK = 64
"""Weights summed at a time when inverting a distribution, since sums are much faster than cumulative sums."""


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """The first index whose cumulative weight exceeds `uniform` times the total; its weight is never 0.
    [b, v], [b] -> [b]"""
    blocks = F.pad(weights, (0, -weights.size(1) % BLOCK)).unflatten(1, (-1, BLOCK))
    ends = blocks.sum(dim=2, dtype=torch.float64).cumsum(dim=1)
    target = uniform.to(ends.device)[:, None] * ends[:, -1:]
    block = torch.searchsorted(ends, target, right=True).clamp_(max=ends.size(1) - 1)
    before = torch.where(block > 0, ends.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks.gather(1, block[:, :, None].expand(-1, -1, BLOCK))[:, 0]
    place = torch.searchsorted(inside.double().cumsum(dim=1), target - before, right=True)
    last = BLOCK - 1 - (inside > 0).int().flip(1).argmax(dim=1, keepdim=True)  # rounding may point past it
    return (block * BLOCK + torch.minimum(place, last))[:, 0]


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """log p(token) under the model itself: temperature 1, no top-k or top-p. [b, v], [b] -> [b]"""
    return logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(dim=-1)
