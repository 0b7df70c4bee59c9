"""Near-duplicate removal.

MinHash (Broder 1997) with banding (LSH; Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3), in
numpy: signatures by multiplicative permutations of 32-bit shingles, bands joined by sorting, and every candidate pair
verified by its true Jaccard similarity, so that nothing is removed because of an estimate.
"""

from collections.abc import Iterator, MutableSequence

import numpy as np

from cupola_platform.corpus.core.shingles import I64, U32, U64, Shingles

BLOCK_SHINGLES = 1 << 16
"""Shingles permuted at once, so that a block and its product fit in a core's cache."""

RECALL = 0.95
"""Probability that banding finds a pair exactly at the threshold; it is higher for pairs above."""

ALL_PAIRS = 8
"""Up to this many documents with equal band keys, all pairs are checked; of more, only some, to stay linear."""


def minhash(shingles: Shingles, num_permutations: int, seed: int = 0) -> U32:
    """MinHash signatures, [texts, num_permutations]: the minimum of each text's shingles under each permutation.

    A permutation is a multiplication by an odd number modulo 2**32, which suffices because shingles are well mixed.
    Texts without shingles get the largest value everywhere.
    """
    factors = np.random.default_rng(seed).integers(0, 1 << 32, num_permutations, dtype=np.uint32) | np.uint32(1)
    counts = np.diff(shingles.offsets)
    full = np.flatnonzero(counts)
    starts = shingles.offsets[:-1][full]
    signatures = np.full((num_permutations, len(counts)), np.iinfo(np.uint32).max, np.uint32)
    for low, high in _ranges(starts, shingles.offsets[-1]):
        block = shingles.hashes[starts[low] : starts[high] if high < len(full) else None]
        product = np.empty_like(block)
        inside = starts[low:high] - starts[low]
        for row, factor in zip(signatures, factors, strict=True):
            np.multiply(block, factor, out=product)
            row[full[low:high]] = np.minimum.reduceat(product, inside)
    return np.ascontiguousarray(signatures.T)


def rows_per_band(threshold: float, num_permutations: int) -> int:
    """The most rows per band with which a pair at the threshold is still found with probability `RECALL`."""
    rows = 1
    while 1 - (1 - threshold ** (rows + 1)) ** (num_permutations // (rows + 1)) >= RECALL:
        rows += 1
        if rows == num_permutations:
            break
    return rows


def _ranges(starts: I64, end: np.int64) -> Iterator[tuple[int, int]]:
    """Index ranges of consecutive `starts` with about `BLOCK_SHINGLES` shingles each."""
    low = 0
    while low < len(starts):
        high = int(np.searchsorted(starts, starts[low] + BLOCK_SHINGLES))
        high = max(low + 1, high)
        yield low, high
        low = high


def pairs_in_runs(keys: U64, members: I64) -> I64:
    """Pairs of members with equal keys, given sorted keys. Shape [pairs, 2]. A long run gives only pairs with its first
    member and of neighbours."""
    places = np.arange(len(keys))
    begins = np.flatnonzero(np.diff(keys, prepend=~keys[:1]))
    lengths = np.diff(np.append(begins, len(keys)))
    first, length = np.repeat(begins, lengths), np.repeat(lengths, lengths)
    later = np.flatnonzero(places > first)
    pairs = [(later - 1, later), (first[later], later)]
    short = later[length[later] <= ALL_PAIRS]
    for back in range(2, ALL_PAIRS):
        far = short[short - first[short] >= back]
        pairs.append((far - back, far))
    return np.concatenate([np.stack([members[left], members[right]], axis=1) for left, right in pairs])


def band_keys(rows: U32) -> U64:
    """A hash of each row. Shape [texts]."""
    keys = np.zeros(len(rows), np.uint64)
    for column in range(rows.shape[1]):
        keys = (keys ^ rows[:, column]) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys


def similar(a: U32, b: U32, threshold: float) -> bool:
    """Whether the Jaccard similarity of two sorted sets is at least `threshold`."""
    if min(len(a), len(b)) < threshold * max(len(a), len(b)):
        return False
    both = np.concatenate([a, b])
    both.sort()
    shared = int(np.count_nonzero(both[1:] == both[:-1]))
    return shared >= threshold * (len(both) - shared)


def root(parents: MutableSequence[int], i: int) -> int:
    """The first member of i's cluster (union-find with path halving)."""
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = parents[i]
    return i
