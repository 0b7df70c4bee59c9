"""Repeated pieces of random tokens, which teach a model to retrieve what it has read.

Text rewards copying too rarely for a small model to learn it quickly. A random token can be predicted only from its
earlier occurrence (Olsson et al. 2022, "In-context learning and induction heads").
"""

import math
from collections.abc import Mapping

import numpy as np

from cupola_trainer.config import CopyingConfig


class Copying:
    """Overwrites parts of a share of the sequences with one piece of random tokens, repeated twice or more.

    Args:
        words: [n] tokens that pieces are sampled from, uniformly.
        seed: with the row's index and the sequence's position in the row, determines everything in any layout.
    """

    def __init__(self, config: CopyingConfig, words: np.ndarray, seed: int) -> None:
        self.config, self.words, self.seed = config, words, seed

    def apply(self, sample: Mapping[str, np.ndarray], index: int, length: int) -> dict[str, np.ndarray]:
        """Apply to a row of [s] arrays, `tokens` and `labels`, that holds sequences of `length` tokens each."""
        row = np.append(sample["tokens"], sample["labels"][-1:])
        for start in range(0, len(row) - 1, length):
            random = np.random.default_rng([self.seed, index, start])
            if random.random() < self.config.share:
                self._insert_piece(row[start : start + length], random)
        return {**sample, "tokens": row[:-1], "labels": row[1:]}

    def _insert_piece(self, sequence: np.ndarray, random: np.random.Generator) -> None:
        """Insert one piece, with log-uniform length and a uniform number of occurrences, from two to as many as fit."""
        longest = len(sequence) // 3
        size = round(math.exp(random.uniform(math.log(self.config.shortest), math.log(longest))))
        times = int(random.integers(2, len(sequence) // size + 1))
        piece = random.choice(self.words, size)
        before = np.sort(random.integers(0, len(sequence) - times * size + 1, times))  # text before each occurrence
        for number, text in enumerate(before):
            start = int(text) + number * size
            sequence[start : start + size] = piece
