"""Pieces of random tokens that a sequence says again: what teaches a model to find what it has read.

Text rewards copying too seldom for a small model to learn it soon; what follows a random token can be told from nothing
but an earlier occurrence of it (Olsson et al. 2022, "In-context learning and induction heads").
"""

import math
from collections.abc import Mapping

import numpy as np

from cupola_trainer.config import CopyingConfig


class Copying:
    """A share of the sequences in which one piece of random tokens stands twice or more, with the text between.

    Args:
        words: [n] the tokens that pieces are made of, all as likely.
        seed: it, a row's number and a sequence's place in the row decide everything, whatever the layout.
    """

    def __init__(self, config: CopyingConfig, words: np.ndarray, seed: int) -> None:
        self.config, self.words, self.seed = config, words, seed

    def apply(self, sample: Mapping[str, np.ndarray], index: int, length: int) -> dict[str, np.ndarray]:
        """A row of [s] arrays, `tokens` and their `labels`, of sequences of `length` tokens each, with its pieces."""
        row = np.append(sample["tokens"], sample["labels"][-1:])
        for start in range(0, len(row) - 1, length):
            random = np.random.default_rng([self.seed, index, start])
            if random.random() < self.config.share:
                self._say_again(row[start : start + length], random)
        return {**sample, "tokens": row[:-1], "labels": row[1:]}

    def _say_again(self, sequence: np.ndarray, random: np.random.Generator) -> None:
        """Short pieces are as likely as long ones, and two occurrences as likely as all that fit."""
        longest = len(sequence) // 3
        size = round(math.exp(random.uniform(math.log(self.config.shortest), math.log(longest))))
        times = int(random.integers(2, len(sequence) // size + 1))
        piece = random.choice(self.words, size)
        before = np.sort(random.integers(0, len(sequence) - times * size + 1, times))  # text before each occurrence
        for number, text in enumerate(before):
            start = int(text) + number * size
            sequence[start : start + size] = piece
