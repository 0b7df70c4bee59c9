"""Rows of packed tokens, by index: of one source, and of several in proportion to weights. Nothing is as long as the
corpus or the job, so a trillion tokens are opened as fast as a thousand."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from cupola_trainer.data.pretraining.shards import Span, Stream
from cupola_trainer.data.pretraining.shuffling import shuffled

PERIOD = 1_000_000
"""Rows after which the interleaving of sources repeats. Their shares are multiples of its inverse."""


class Source:
    """The rows of one source, epoch after epoch.

    An epoch cuts the source's tokens into rows, wherever documents begin and end, and reads these in an order of its
    own. Where the first row begins differs from epoch to epoch; the last one goes on at the beginning.
    """

    def __init__(self, stream: Stream, length: int, seed: int) -> None:
        """`length` is that of a row, in tokens; the stream has more."""
        self.stream, self.length = stream, length
        self.epoch = (len(stream) - 1) // length
        """Rows of an epoch."""
        self._seed = (seed, *stream.name.encode())

    def span(self, index: int) -> Span:
        """The tokens of a row, and the one after it."""
        epoch, number = divmod(index, self.epoch)
        offset = shuffled(epoch % len(self.stream), len(self.stream), self._seed)
        row = shuffled(number, self.epoch, (*self._seed, epoch))
        return (offset + row * self.length) % len(self.stream), self.length + 1


class Blend:
    """The rows of several sources, interleaved evenly: each number of rows from the beginning has the sources' shares,
    to within a row of each source."""

    def __init__(self, sources: Sequence[Source], weights: Sequence[float], period: int = PERIOD) -> None:
        self.sources = sources
        counts = shares(weights, period)
        self._counts = counts // np.gcd.reduce(counts)
        self._sources, self._numbers = interleaved(self._counts)

    @property
    def epoch(self) -> int:
        """Rows of one epoch of each source."""
        return sum(source.epoch for source in self.sources)

    @property
    def is_here(self) -> bool:
        """Whether this machine has all the tokens."""
        return all(source.stream.is_here for source in self.sources)

    def place(self, index: int) -> tuple[int, int]:
        """The source of a row, and the row's index there."""
        period, position = divmod(index, len(self._sources))
        source = int(self._sources[position])
        return source, period * int(self._counts[source]) + int(self._numbers[position])

    def __getitem__(self, index: int) -> np.ndarray:
        """A row and the token after it, int64 [length + 1]. Errors: see `Stream.read`."""
        source, number = self.place(index)
        return self.sources[source].stream.read(*self.sources[source].span(number))

    def fetch(self, indices: Iterable[int]) -> None:
        """Fetch the tokens of some rows, many at once, if this machine does not have them."""
        wanted: dict[Source, list[Span]] = defaultdict(list)
        for index in indices:
            source, number = self.place(index)
            wanted[self.sources[source]].append(self.sources[source].span(number))
        for each, spans in wanted.items():
            each.stream.fetch(spans)


def shares(weights: Sequence[float], period: int) -> np.ndarray:
    """Positive integers that sum to `period`, in proportion to weights; the largest takes what rounding leaves."""
    counts: np.ndarray = np.maximum(1, np.rint(np.array(weights) / np.sum(weights) * period)).astype(np.int64)
    counts[counts.argmax()] += period - counts.sum()
    return counts


def interleaved(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`counts[i]` rows of each source i, evenly spaced: the source of each row, and the row's number in it; int32."""
    places = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    order = np.argsort(places, kind="stable")
    numbers = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
    return np.repeat(np.arange(len(counts), dtype=np.int32), counts)[order], numbers[order]
