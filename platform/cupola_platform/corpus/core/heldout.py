"""Selects the documents held out from training and those the tokenizer is trained on."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cupola_platform.corpus.core.document_files import I64, U64
from cupola_platform.corpus.core.shingles import mix

F64 = NDArray[np.float64]


def draws(digests: U64, seed: int) -> F64:
    """Uniform numbers in [0, 1) from the digests, [documents, 2], so that a document keeps its draw as others are
    added."""
    offset = np.uint64((seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % (1 << 64))
    return (mix(digests[:, 0] ^ offset) >> np.uint64(11)) / 2.0**53


@dataclass
class Extremes:
    """The documents of one source with the lowest and highest draw: one is held out, one trained on.

    Of equal draws the first counts, so equal texts stay together.
    """

    least: tuple[float, int] | None = None
    greatest: tuple[float, int] | None = None

    def see(self, drawn: F64, numbers: I64) -> None:
        """Add documents, in order."""
        if not len(numbers):
            return
        low, high = int(np.argmin(drawn)), int(np.argmax(drawn))
        if self.least is None or drawn[low] < self.least[0]:
            self.least = (float(drawn[low]), int(numbers[low]))
        if self.greatest is None or drawn[high] > self.greatest[0]:
            self.greatest = (float(drawn[high]), int(numbers[high]))

    def heldout(self, drawn: F64, fraction: float) -> NDArray[np.bool_]:
        """Whether each document is held out; a source with two or more has at least one on each side."""
        if self.least is None or self.greatest is None or self.least[0] == self.greatest[0]:
            return np.zeros(len(drawn), bool) if self.least else drawn < fraction
        held = drawn < fraction
        held[drawn == self.least[0]] = True
        held[drawn == self.greatest[0]] = False
        return held


class Sample:
    """The documents with the lowest draws, about `size` bytes in total, in constant memory."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._draws = np.zeros(0)
        self._numbers = np.zeros(0, np.int64)
        self._sizes = np.zeros(0, np.int64)

    def see(self, drawn: F64, numbers: I64, sizes: I64) -> None:
        """Add documents."""
        drawn = np.concatenate([self._draws, drawn])
        numbers = np.concatenate([self._numbers, numbers])
        sizes = np.concatenate([self._sizes, sizes])
        order = np.lexsort((numbers, drawn))
        keep = order[: int(np.searchsorted(np.cumsum(sizes[order]), self._size)) + 1]
        self._draws, self._numbers, self._sizes = drawn[keep], numbers[keep], sizes[keep]

    def numbers(self) -> I64:
        """The chosen documents, in corpus order."""
        return np.sort(self._numbers)
