"""Byte-pair encoding learnt from counted words (Sennrich et al. 2016), from single bytes or on top of a vocabulary.

What it takes in memory grows with the distinct words, never with the text: words are counted first, and counts that
outgrow their bound go to disk in sorted runs. Counts are Python's integers: none overflows.
"""

import heapq
import pickle
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import groupby, pairwise
from operator import itemgetter
from typing import IO

import numpy as np

from cupola_platform.corpus.splitting import bytes_and_words
from cupola_platform.corpus.word_table import LONGEST, keys_of

MAX_WORDS = 2_000_000
"""Distinct words kept in memory, and learnt from: about 1 GB. Of more, the most frequent are learnt from."""

BATCH_CHARACTERS = 1 << 18
_RUN = 10_000
"""Words written to a run at once."""

Pair = tuple[int, int]
Count = tuple[bytes, int]


def count_words(texts: Iterable[str], max_words: int = MAX_WORDS) -> dict[bytes, int]:
    """How often each word comes, of texts in NFC; the `max_words` most frequent where there are more.

    The same for any order of the texts: of words with equal counts those stay whose bytes come first.
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
    """The merges to learn, in order; the merge at place i makes the token of id `first` + i.

    Each one joins the two neighbours that come most often; of equals, those of the smallest ids.

    Args:
        words: how often each comes.
        parts: the ids of each word's parts as they are now, in the order of `words`.
        first: id of the first new token.
        count: merges to learn, at most: fewer when no word has two parts left.
    """
    tokens = [list(ids) for ids in parts]
    often = list(words.values())
    counts: dict[Pair, int] = defaultdict(int)
    where: dict[Pair, set[int]] = defaultdict(set)
    for i, ids in enumerate(tokens):
        for pair in pairwise(ids):
            counts[pair] += often[i]
            where[pair].add(i)
    heap = [(-total, pair) for pair, total in counts.items()]
    heapq.heapify(heap)
    merges: list[Pair] = []
    while heap and len(merges) < count:
        total, pair = heapq.heappop(heap)
        if -total != counts[pair]:  # fewer than when it was put here
            if counts[pair] > 0:
                heapq.heappush(heap, (-counts[pair], pair))
            continue
        grown = set()
        for i in where.pop(pair):
            tokens[i], changes = _merge(tokens[i], pair, first + len(merges))
            for changed, step in changes:
                counts[changed] += step * often[i]
                if step > 0:
                    where[changed].add(i)
                    grown.add(changed)
        merges.append(pair)
        del counts[pair]
        for changed in grown - {pair}:
            heapq.heappush(heap, (-counts[changed], changed))
    return merges


def _merge(ids: list[int], pair: Pair, new: int) -> tuple[list[int], list[tuple[Pair, int]]]:
    """A word with every such pair joined, from the left, and the neighbours that went and came."""
    first, second = pair
    merged: list[int] = []
    changes: list[tuple[Pair, int]] = []
    i, last = 0, len(ids) - 1
    while i <= last:
        if i < last and ids[i] == first and ids[i + 1] == second:
            if merged:
                changes += [((merged[-1], first), -1), ((merged[-1], new), 1)]
            if i + 2 <= last:
                changes += [((second, ids[i + 2]), -1), ((new, ids[i + 2]), 1)]
            merged.append(new)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged, changes


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
    """The counts in a file without a name, sorted by word."""
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
