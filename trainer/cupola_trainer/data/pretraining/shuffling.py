"""The order of a source's rows: a new one each epoch, computed from the index alone, in the same time and memory for
any number of rows."""

import math
from functools import lru_cache

import numpy as np

ROUNDS = 6
_BITS = (1 << 64) - 1


def shuffled(index: int, size: int, seed: tuple[int, ...]) -> int:
    """Where a permutation of `size` numbers puts `index`.

    A Feistel network over pairs of digits to the base sqrt(size), applied again while its result is too large (Black
    and Rogaway 2002, "Ciphers with arbitrary finite domains", generalized Feistel and cycle walking). Unlike a shuffled
    array, it needs no memory, and no time before the first row.
    """
    base = math.isqrt(size - 1) + 1
    while True:
        left, right = divmod(index, base)
        for key in _keys(seed):
            left, right = right, (left + _mixed(key + right)) % base
        index = left * base + right
        if index < size:
            return index


@lru_cache(256)
def _keys(seed: tuple[int, ...]) -> list[int]:
    return [int(key) for key in np.random.default_rng(seed).integers(1 << 63, size=ROUNDS)]


def _mixed(number: int) -> int:
    """SplitMix64's output function (Steele et al. 2014, "Fast splittable pseudorandom number generators")."""
    number = (number * 0x9E3779B97F4A7C15) & _BITS
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _BITS
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & _BITS
    return number ^ (number >> 31)
