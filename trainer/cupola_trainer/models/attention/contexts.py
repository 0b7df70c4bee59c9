"""Context parallelism: before attention, ranks exchange their parts of the sequence for parts of the heads.

Each rank then attends over whole sequences with some of the heads, so everything that attention can do on one rank
(packed texts, windows, dual chunks) works on several. Memory and communication are linear in the length (Jacobs et al.
2023, DeepSpeed Ulysses).
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from megatron.core.tensor_parallel.mappings import all_to_all
from torch import Tensor

Core = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention over whole sequences: [b, heads, s, d], [b, groups, s, d] twice -> [b, heads, s, d]."""


def zigzag(local_length: int, rank: int, size: int) -> Tensor:
    """Global positions of a context-parallel rank's tokens: chunks `rank` and `2 * size - 1 - rank`, as Megatron and
    Transformer Engine place them."""
    chunk = local_length // 2
    positions = torch.arange(chunk)
    return torch.cat([positions + rank * chunk, positions + (2 * size - 1 - rank) * chunk])


def across_contexts(core: Core, query: Tensor, key: Tensor, value: Tensor, group: Any) -> Tensor:
    """Attention of sequences whose tokens are spread over a group's ranks.

    The heads need not divide by the ranks: some get one head more than others.

    Args:
        query: this rank's tokens [s, b, heads, d], in the order of `zigzag`.
        key, value: [s, b, groups, d]; heads are a multiple of groups.

    Returns:
        [s, b, heads, d] of the same tokens.
    """
    heads, groups = query.size(2), key.size(2)
    shared = heads // groups
    parts = split(heads, group.size())
    sources = [range(part.start // shared, -(-part.stop // shared)) for part in parts]  # groups that a part reads
    mine, own = parts[group.rank()], sources[group.rank()]
    q = _to_heads(query, parts, group)
    k, v = (_to_heads(each, sources, group) for each in (key, value))
    if len(mine):
        if len(own) > 1 and (mine.start % shared or mine.stop % shared):  # not equally many heads of each group
            of = torch.tensor([head // shared - own.start for head in mine], device=key.device)
            k, v = k.index_select(1, of), v.index_select(1, of)
        output = core(q, k, v)
    else:  # this rank takes part in the exchanges only
        output = q + 0 * (k.sum() + v.sum())
    return _to_tokens(output, parts, group)


def split(heads: int, ranks: int) -> list[range]:
    """Each rank's heads, as equal as they can be."""
    bounds = [rank * heads // ranks for rank in range(ranks + 1)]
    return [range(first, end) for first, end in pairwise(bounds)]


def _to_heads(x: Tensor, parts: Sequence[range], group: Any) -> Tensor:
    """[s, b, heads, d] of this rank's tokens -> [b, this rank's heads, all tokens in order, d]."""
    s, b, _, d = x.shape
    sent = torch.cat([x[:, :, part.start : part.stop].reshape(-1, d) for part in parts])
    mine = len(parts[group.rank()])
    received = all_to_all(group, sent, [s * b * mine] * group.size(), [s * b * len(part) for part in parts])
    chunks = received.view(group.size(), 2, s // 2, b, mine, d)
    ordered = [*chunks[:, 0], *chunks[:, 1].flip(0)]
    return torch.cat(ordered).permute(1, 2, 0, 3)


def _to_tokens(x: Tensor, parts: Sequence[range], group: Any) -> Tensor:
    """The inverse of `_to_heads`."""
    size = group.size()
    chunks = x.permute(2, 0, 1, 3).unflatten(0, (2 * size, -1))  # [2 * ranks, s / 2, b, this rank's heads, d]
    sent = torch.cat([chunks[rank] for pair in range(size) for rank in (pair, 2 * size - 1 - pair)])
    s, b, mine, d = sent.size(0) // size, sent.size(1), sent.size(2), sent.size(3)
    counts = [s * b * len(part) for part in parts]
    received = all_to_all(group, sent.reshape(-1, d), counts, [s * b * mine] * size)
    return torch.cat([each.view(s, b, -1, d) for each in received.split(counts)], dim=2)
