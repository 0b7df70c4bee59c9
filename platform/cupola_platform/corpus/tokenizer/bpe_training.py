"""Byte-pair encoding trained on word counts (Sennrich et al. 2016), from single bytes or on top of a vocabulary.

Memory grows with the distinct words, not with the text: words are counted first, and counts that exceed their bound go
to disk in sorted runs. Counts have 64 bits, so they cannot overflow.
"""

import heapq
import pickle
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import groupby
from operator import itemgetter
from typing import IO

import numpy as np
from numpy.typing import NDArray

from cupola_platform.corpus.tokenizer.splitting import bytes_and_words
from cupola_platform.corpus.tokenizer.word_table import LONGEST, keys_of

MAX_WORDS = 2_000_000
"""Maximum distinct words, about 1 GB of memory; of more, only the most frequent are trained on."""

BATCH_CHARACTERS = 1 << 18
_RUN = 10_000
"""Words written to a run at a time."""

_NONE = -1
"""Separates words, and marks a part that was merged into the one before it."""

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Pair = tuple[int, int]
Count = tuple[bytes, int]


def count_words(texts: Iterable[str], max_words: int = MAX_WORDS) -> dict[bytes, int]:
    """Counts of the `max_words` most frequent words, in texts in NFC.

    The result does not depend on the order of the texts: of words with equal counts, those with smaller bytes are kept.
    """
    counts: Counter[bytes] = Counter()
    with ExitStack() as stack:
        runs: list[IO[bytes]] = []
        for batch in _batches(texts):
            for word, count in _count(batch):
                counts[word] += count
            if len(counts) > max_words:
                runs.append(_spill(counts, stack))
                counts.clear()
        if not runs:
            return counts
        runs.append(_spill(counts, stack))
        counts.clear()
        merged = groupby(heapq.merge(*map(_read_run, runs)), key=itemgetter(0))
        totals = ((word, sum(count for _, count in of)) for word, of in merged)
        return dict(heapq.nsmallest(max_words, totals, key=lambda of: (-of[1], of[0])))


def learn_merges(words: Mapping[bytes, int], parts: Iterable[Sequence[int]], first: int, count: int) -> list[Pair]:
    """The merges to learn, in order; merge i makes the token with id `first` + i.

    Each merges the most frequent pair of neighbours; of equally frequent ones, that with the smallest ids.

    Args:
        words: the count of each word.
        parts: the current token ids of each word, in the order of `words`.
        first: id of the first new token.
        count: maximum number of merges; there are fewer if no word has two parts left.
    """
    chain = _Chain(list(words.values()), parts)
    counts = dict[int, int]()
    where = dict[int, I32]()
    heap: list[tuple[int, int]] = []

    def see(pairs: Iterable[tuple[int, int, I32]]) -> None:
        for key, total, places in pairs:
            counts[key], where[key] = total, places
            heapq.heappush(heap, (-total, key))

    see(chain.pairs())
    merges: list[Pair] = []
    while heap and len(merges) < count:
        total, key = heapq.heappop(heap)
        if -total != counts.get(key, 0):  # its count has dropped since it was pushed
            if key in counts:
                heapq.heappush(heap, (-counts[key], key))
            continue
        pair = (key >> 32, key & 0xFFFFFFFF)
        gone, come = chain.merge(where[key], pair, first + len(merges))
        merges.append(pair)
        for other, lost in gone:
            counts[other] -= lost
            if not counts[other]:
                del counts[other], where[other]
        counts.pop(key, None)  # what is left is in runs of one part: `aaa` is (a, a), then a
        where.pop(key, None)
        see(come)
    return merges


class _Chain:
    """The parts of all words, concatenated in arrays; a merge is applied everywhere at once.

    A part merged into the one before it keeps its place and is skipped.
    """

    def __init__(self, often: Sequence[int], parts: Iterable[Sequence[int]]) -> None:
        flat, lengths = array("i"), array("q")
        for ids in parts:
            flat.extend(ids)
            flat.append(_NONE)
            lengths.append(len(ids) + 1)
        self._ids: I32 = np.array(flat, np.int32)
        self._word: I32 = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        self._often = np.array(often, np.int64)
        self._after: I32 = np.arange(1, len(flat) + 1, dtype=np.int32)
        self._before: I32 = np.arange(-1, len(flat) - 1, dtype=np.int32)

    def pairs(self) -> Iterator[tuple[int, int, I32]]:
        """Pairs of neighbours as one number, their counts, and the positions of the first of the two."""
        left, right = self._ids[:-1], self._ids[1:]
        places = np.flatnonzero((left != _NONE) & (right != _NONE)).astype(np.int32)
        keys = _keys(left[places], right[places])
        return _grouped(keys, self._often[self._word[places]], places)

    def merge(
        self, places: I32, pair: Pair, new: int
    ) -> tuple[Iterator[tuple[int, int]], Iterator[tuple[int, int, I32]]]:
        """Merge a pair everywhere, from the left. Returns the pairs that disappear and those that appear."""
        ids, first, second = self._ids, *pair
        left = np.sort(places)
        left = left[(ids[left] == first) & (ids[self._after[left]] == second)]
        if first == second:
            left = left[_every_other(self._after[left[:-1]] == left[1:])]
        right = self._after[left]
        after, before, often = self._after[right], self._before[left], self._often[self._word[left]]
        touching = after[:-1] == left[1:]  # the next pair follows directly
        follows, followed = np.append(False, touching), np.append(touching, False)
        has_before, has_after = (ids[before] != _NONE) & ~follows, ids[after] != _NONE
        old_before, old_after = ids[before][has_before], ids[after][has_after]
        new_after = np.where(followed[has_after], np.int32(new), old_after)
        weights = np.concatenate([often[has_before], often[has_after]])
        gone = np.concatenate([_keys(old_before, first), _keys(second, old_after)])
        come = np.concatenate([_keys(old_before, new), _keys(new, new_after)])
        at = np.concatenate([before[has_before], left[has_after]])
        ids[left], ids[right] = new, _NONE
        self._after[left], self._before[after] = after, left
        lost = ((key, total) for key, total, _ in _grouped(gone, weights, at))
        return lost, _grouped(come, weights, at)


def _keys(left: I32 | int, right: I32 | int) -> I64:
    return np.asarray(left, np.int64) << 32 | np.asarray(right, np.int64)


def _grouped(keys: I64, weights: I64, places: I32) -> Iterator[tuple[int, int, I32]]:
    """Each distinct key with the sum of its weights and its positions."""
    if not len(keys):
        return
    order = np.argsort(keys, kind="stable")
    keys, places = keys[order], places[order]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    totals = np.add.reduceat(weights[order], starts)
    ends = np.append(starts[1:], len(keys))
    for key, total, start, end in zip(*(of.tolist() for of in (keys[starts], totals, starts, ends)), strict=True):
        yield key, total, places[start:end]


def _every_other(touching: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Selects the first, third, ... position of every run of touching positions."""
    numbers = np.arange(len(touching) + 1)
    starts = np.maximum.accumulate(np.where(np.append(True, ~touching), numbers, 0))
    return np.asarray((numbers - starts) % 2 == 0)


def _count(texts: Sequence[str]) -> Iterator[Count]:
    ends = np.cumsum([len(text) + 1 for text in texts]) - 1
    data, (places, starts) = bytes_and_words("\0".join([*texts, ""]), ends)
    lengths = np.diff(starts, append=len(data) - 16)
    words = np.ones(len(starts), bool)
    words[np.searchsorted(places, ends)] = False
    short = words & (lengths <= LONGEST)
    starts_of_short, lengths_of_short = starts[short], lengths[short]
    keys = keys_of(data, starts_of_short, lengths_of_short)
    order = np.lexsort(keys)
    new = np.ones(len(order), bool)
    new[1:] = (np.diff(keys[0][order]) != 0) | (np.diff(keys[1][order]) != 0)
    firsts = np.flatnonzero(new)
    for i, count in zip(order[firsts].tolist(), np.diff(firsts, append=len(order)).tolist(), strict=True):
        yield data[starts_of_short[i] : starts_of_short[i] + lengths_of_short[i]].tobytes(), count
    for i in np.flatnonzero(words & ~short).tolist():
        yield data[starts[i] : starts[i] + lengths[i]].tobytes(), 1


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _spill(counts: Mapping[bytes, int], stack: ExitStack) -> IO[bytes]:
    """Write the counts to an unnamed temporary file, sorted by word."""
    file = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    ordered = sorted(counts.items())
    for start in range(0, len(ordered), _RUN):
        pickle.dump(ordered[start : start + _RUN], file)
    file.seek(0)
    return file


def _read_run(file: IO[bytes]) -> Iterator[Count]:
    while True:
        try:
            yield from pickle.load(file)
        except EOFError:
            return
