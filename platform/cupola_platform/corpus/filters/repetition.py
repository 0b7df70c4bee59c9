"""How much of a text is repeated (Gopher: Rae et al. 2021, table A1), in numpy without a Python object per word."""

from collections.abc import Sequence

import numpy as np

from cupola_platform.corpus.core.shingles import I64, U64, ngrams


def top_ngram(words: U64, lengths: I64, n: int) -> tuple[int, int, int]:
    """Count, characters and first position of the most frequent run of `n` words; of equally frequent ones, the
    first."""
    order, begins, counts = _runs(words, n)
    if not len(order):
        return 0, 0, 0
    firsts = order[begins]
    most = np.flatnonzero(counts == counts.max())
    place = int(firsts[most].min())
    return int(counts.max()), int(lengths[place : place + n].sum()), place


def repeated_characters(words: U64, lengths: I64, n: int) -> int:
    """Characters of words that are in a run of `n` words that occurred before."""
    order, begins, _ = _runs(words, n)
    again = np.ones(len(order), bool)
    again[begins] = False
    edges = np.zeros(len(words) + 1, np.int64)
    np.add.at(edges, order[again], 1)
    np.add.at(edges, order[again] + n, -1)
    return int(lengths[np.cumsum(edges[:-1]) > 0].sum())


def repeated_pieces(pieces: Sequence[str]) -> tuple[int, int]:
    """The number of lines or paragraphs that occurred before, and their characters."""
    seen: set[str] = set()
    count = characters = 0
    for piece in pieces:
        if piece in seen:
            count += 1
            characters += len(piece)
        seen.add(piece)
    return count, characters


def _runs(words: U64, n: int) -> tuple[I64, I64, I64]:
    """Positions of runs of `n` words, grouped by equal runs and earliest first; each group's start and size."""
    keys = ngrams(words, n)
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    new = np.ones(len(keys), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    begins = np.flatnonzero(new)
    return order, begins, np.diff(begins, append=len(keys))
