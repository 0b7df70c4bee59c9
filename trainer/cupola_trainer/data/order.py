"""The order of samples: a new permutation each epoch, computed from the index alone, so resuming needs no state."""

from functools import lru_cache

import numpy as np


def order(index: int, size: int, seed: int) -> int:
    """Position in a data set of `size` samples of the `index`-th sample read; each epoch reads every one once."""
    epoch, step = divmod(index, size)
    return int(_permutation(size, seed, epoch)[step])


@lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(size)
