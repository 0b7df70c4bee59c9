"""A hash table of short words, with lookups of a hundred thousand words at a time.

A word of up to 15 bytes is its own key, so there are no collisions. A key is two 64-bit numbers: bytes 0 to 7, and
bytes 8 to 14 with the length in the top byte.
"""

import numpy as np
from numpy.typing import NDArray

LONGEST = 15
"""Maximum bytes of a word that fits in a key."""

MAX_WORDS = 1 << 20
"""Maximum words, about 90 MB with their ids; then the table is cleared."""

_FIRST_BITS = 17
"""Initial slots as a power of two (3 MB), since growing the table costs as much as lookups."""

_PROBES = 8
_MULTIPLIERS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))
_BYTE_MASKS = np.array([(1 << 8 * length) - 1 for length in range(9)], np.uint64)

Keys = tuple[NDArray[np.uint64], NDArray[np.uint64]]


def keys_of(data: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Keys:
    """The keys of words in `data`, which has 16 padding bytes at the end. Shapes [words]."""
    words = np.ndarray((len(data) - 7,), "<u8", data, strides=(1,))
    low = words[starts] & _BYTE_MASKS[np.minimum(lengths, 8)]
    high = words[starts + 8] & _BYTE_MASKS[np.clip(lengths - 8, 0, 7)]
    return low, high | (lengths.astype(np.uint64) << np.uint64(56))


def mixed(keys: Keys) -> NDArray[np.uint64]:
    """A well-mixed hash of each word; different words may share it. Shape [words]."""
    low, high = keys
    spread = (low ^ (low >> np.uint64(29))) * _MULTIPLIERS[0] + high * _MULTIPLIERS[1]
    return np.asarray((spread ^ (spread >> np.uint64(32))) * _MULTIPLIERS[0])


class WordTable:
    """Words and their token ids."""

    def __init__(self, end: int) -> None:
        """`end` is the id at `ids[0]`, for ends of documents."""
        self._end = end
        self.clear()

    def clear(self) -> None:
        """Remove all words."""
        self._allocate(_FIRST_BITS)
        self._words = 0
        self._ids = np.full(1 << 12, self._end, np.int32)
        self._used = 1

    @property
    def ids(self) -> NDArray[np.int32]:
        """The ids of all words, concatenated."""
        return self._ids[: self._used]

    def find(self, keys: Keys) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The position of each word's ids in `ids`, and their number, which is zero for unknown words. Shapes
        [words]."""
        slots = self._slots(keys)
        places, counts = self._places[slots], self._counts[slots]
        wrong = (self._low[slots] != keys[0]) | (self._high[slots] != keys[1])
        left = np.flatnonzero(wrong & (counts > 0))  # the search ends at a free slot
        counts[wrong] = 0
        for step in range(1, _PROBES):
            if not len(left):
                break
            tried = (slots[left] + step) & self._mask
            hit = (self._low[tried] == keys[0][left]) & (self._high[tried] == keys[1][left])
            places[left[hit]] = self._places[tried[hit]]
            counts[left[hit]] = self._counts[tried[hit]]
            left = left[~hit & (self._counts[tried] > 0)]
        return places, counts

    def add(self, keys: Keys, ids: NDArray[np.int32], counts: NDArray[np.int64]) -> None:
        """Add new, distinct words with their concatenated ids, and the number of ids of each."""
        while self._used + len(ids) > len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
        self._ids[self._used : self._used + len(ids)] = ids
        places = (self._used + np.cumsum(counts) - counts).astype(np.int32)
        self._used += len(ids)
        self._words += len(counts)
        while 2 * self._words > self._mask + 1:
            self._grow()
        self._insert(keys, places, counts.astype(np.int32))

    @property
    def full(self) -> bool:
        return self._words >= MAX_WORDS

    def _insert(self, keys: Keys, places: NDArray[np.int32], counts: NDArray[np.int32]) -> None:
        left = np.arange(len(places))
        slots = self._slots(keys)
        for step in range(_PROBES):
            tried = (slots[left] + step) & self._mask
            won = self._counts[tried] == 0
            self._places[tried[won]] = left[won]  # of several words that want a slot, one gets it
            won[won] = self._places[tried[won]] == left[won]
            taken, chosen = tried[won], left[won]
            self._low[taken], self._high[taken] = keys[0][chosen], keys[1][chosen]
            self._places[taken], self._counts[taken] = places[chosen], counts[chosen]
            left = left[~won]
            if not len(left):
                return
        self._grow()
        self._insert((keys[0][left], keys[1][left]), places[left], counts[left])

    def _grow(self) -> None:
        old = np.flatnonzero(self._counts)
        keys, places, counts = (self._low[old], self._high[old]), self._places[old], self._counts[old]
        self._allocate(self._bits + 1)
        self._insert(keys, places, counts)

    def _allocate(self, bits: int) -> None:
        self._bits, self._mask = bits, (1 << bits) - 1
        self._low, self._high = np.zeros((2, 1 << bits), np.uint64)
        self._places, self._counts = np.zeros((2, 1 << bits), np.int32)

    def _slots(self, keys: Keys) -> NDArray[np.int64]:
        return (mixed(keys) >> np.uint64(64 - self._bits)).astype(np.int64)
