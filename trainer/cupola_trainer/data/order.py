"""The order in which samples are seen: a fresh permutation each epoch, reached from the index alone,
so resuming is free."""

from functools import lru_cache

import numpy as np


def order(index: int, size: int, seed: int) -> int:
    """The place in a data set of `size` samples to read as the `index`-th ever: each epoch sees every place once."""
    epoch, step = divmod(index, size)
    return int(_permutation(size, seed, epoch)[step])


@lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(size)
