"""Sets of word n-grams as 32-bit hashes, for many texts at a time.

No Python object is created per word: words are found in one array of code points, and hashed by differences of a
running polynomial sum modulo 2**64 (the base is odd, so its powers have inverses).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

BLOCK_CHARACTERS = 1 << 16
"""Characters hashed at once, so that the working arrays fit in a core's cache."""

_SEPARATOR, _LETTER, _IDEOGRAPH = 0, 1, 2
_PLANES = 0x32000
"""Code points from here on (unassigned, tags, private use) separate words."""

_BASE = 0x9E3779B97F4A7C15
_MIX_1 = np.uint64(0xFF51AFD7ED558CCD)
_MIX_2 = np.uint64(0xC4CEB9FE1A85EC53)
_NEXT_WORD = np.uint64(0xD6E8FEB86659FD93)
_WORDS_WITHOUT_SPACES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x31FFF),  # Chinese characters
)  # fmt: skip


@dataclass(frozen=True)
class Shingles:
    """Hashed n-grams of consecutive texts: text i has `hashes[offsets[i]:offsets[i + 1]]`, with duplicates."""

    hashes: U32
    offsets: I64

    def unique(self, text: int) -> U32:
        """The sorted set of one text's shingles."""
        hashes = np.sort(self.hashes[self.offsets[text] : self.offsets[text + 1]])
        first = np.empty(len(hashes), bool)  # several times faster than np.unique for so few
        first[:1] = True
        np.not_equal(hashes[1:], hashes[:-1], out=first[1:])
        return hashes[first]


def shingle(texts: Sequence[str], ngram: int) -> Shingles:
    """The n-grams of each text's lower-cased words; a text with fewer than `ngram` words is one shingle.

    In scripts without spaces each character is a word. A text without words has no shingle.
    """
    parts = [_shingle_block(block, ngram) for block in _blocks(texts)]
    counts = np.concatenate([count for _, count in parts] or [np.zeros(0, np.int64)])
    hashes = np.concatenate([part for part, _ in parts] or [np.zeros(0, np.uint32)])
    return Shingles(hashes, np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]))


@dataclass(frozen=True)
class Words:
    """Hashed words of consecutive texts, lower-cased: text i has `hashes[offsets[i]:offsets[i + 1]]`."""

    hashes: U64
    lengths: I64
    """Characters of each word."""
    offsets: I64

    def of(self, text: int) -> U64:
        """The words of one text."""
        return self.hashes[self.offsets[text] : self.offsets[text + 1]]

    def lengths_of(self, text: int) -> I64:
        """The lengths of one text's words."""
        return self.lengths[self.offsets[text] : self.offsets[text + 1]]


def hashed_words(texts: Sequence[str]) -> Words:
    """The words of each text as in `shingle`, hashed to 64 bits."""
    parts = [_hash_block(block) for block in _blocks(texts)]
    none = np.zeros(0, np.int64)
    hashes = np.concatenate([part[0] for part in parts] or [none.astype(np.uint64)])
    counts, lengths = (np.concatenate([part[place] for part in parts] or [none]) for place in (1, 2))
    return Words(hashes, lengths, np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]))


def word_spans(text: str) -> I64:
    """Start and end of each of a text's words as in `hashed_words`, in characters. Shape [words, 2]."""
    return np.stack(_words(_points([text])), axis=1)


def ngrams(words: U64, n: int) -> U64:
    """A hash of each run of `n` words. Shape [max(words - n + 1, 0)]."""
    keys = np.zeros(max(len(words) - n + 1, 0), np.uint64)
    for place in range(n if len(keys) else 0):
        keys = keys * _NEXT_WORD + words[place : place + len(keys)]
    return mix(keys)


def _blocks(texts: Sequence[str]) -> Iterator[list[str]]:
    block: list[str] = []
    filled = 0
    for text in texts:
        block.append(text)
        filled += len(text)
        if filled >= BLOCK_CHARACTERS:
            yield block
            block, filled = [], 0
    if block:
        yield block


def _shingle_block(texts: Sequence[str], ngram: int) -> tuple[U32, I64]:
    """Hashes of all shingles of a block, and their number per text."""
    words, counts, _ = _hash_block(texts)
    return _join_words(words, counts, ngram)


def _hash_block(texts: Sequence[str]) -> tuple[U64, I64, I64]:
    """Hashes of all words of a block, their number per text, and the length of each."""
    points = _points(texts)
    ends = np.cumsum([len(text) + 1 for text in texts]) - 1  # the line feed after each text also separates words
    starts, stops = _words(points)
    counts = np.diff(np.searchsorted(starts, ends), prepend=0)
    return _hash_words(_lower()[points], starts, stops), counts, stops - starts


def _points(texts: Sequence[str]) -> U32:
    points = np.frombuffer("\n".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    return np.minimum(points, _PLANES)


def _words(points: U32) -> tuple[I64, I64]:
    """Start and end of each word."""
    classes = _classes()[points]
    inside = classes != _SEPARATOR
    alone = classes == _IDEOGRAPH
    breaks = np.empty(len(points) + 1, bool)  # between a character and the one before it
    breaks[0] = breaks[-1] = True
    np.not_equal(classes[1:], classes[:-1], out=breaks[1:-1])
    breaks[1:-1] |= alone[1:]
    edges = np.flatnonzero(breaks)
    keep = inside[edges[:-1]] if len(points) else np.zeros(0, bool)
    return edges[:-1][keep], edges[1:][keep]


def _hash_words(points: U32, starts: I64, stops: I64) -> U64:
    """One hash per word, computed in stretches of characters so that a long text needs no larger tables."""
    hashes = np.empty(len(starts), np.uint64)
    low = 0
    while low < len(starts):
        first = starts[low]
        high = max(low + 1, int(np.searchsorted(starts, first + BLOCK_CHARACTERS)))
        stretch = points[first : stops[high - 1]].astype(np.uint64) + np.uint64(1)
        powers, inverses = _powers(max(BLOCK_CHARACTERS, 1 << len(stretch).bit_length()))
        running = np.zeros(len(stretch) + 1, np.uint64)
        np.cumsum(stretch * powers[: len(stretch)], out=running[1:])
        begins, ends = starts[low:high] - first, stops[low:high] - first
        hashes[low:high] = (running[ends] - running[begins]) * inverses[begins]
        low = high
    return mix(hashes)


def _join_words(words: U64, counts: I64, ngram: int) -> tuple[U32, I64]:
    """n-grams within each text, given the consecutive words of all texts and their `counts` per text."""
    padded = np.concatenate([words, np.zeros(ngram - 1, np.uint64)])
    joined = np.zeros(len(words), np.uint64)
    for place in range(ngram):
        joined = joined * _NEXT_WORD + padded[place : place + len(words)]
    shingles = np.where(counts >= ngram, counts - ngram + 1, np.minimum(counts, 1))
    text_of = np.repeat(np.arange(len(counts)), counts)
    place_in_text = np.arange(len(words)) - np.repeat(np.cumsum(counts) - counts, counts)
    keep = place_in_text < shingles[text_of]
    for text in np.flatnonzero((counts > 0) & (counts < ngram)):
        first = int(counts[:text].sum())
        joined[first] = _fold(words[first : first + counts[text]])
    return (mix(joined[keep]) >> np.uint64(32)).astype(np.uint32), shingles


def _fold(words: U64) -> np.uint64:
    powers = _powers(BLOCK_CHARACTERS)[0]
    return np.uint64((words * powers[: len(words)]).sum(dtype=np.uint64))


def mix(values: U64) -> U64:
    """MurmurHash3's finalizer: every bit of the result depends on every bit of the value."""
    values = (values ^ (values >> np.uint64(33))) * _MIX_1
    values = (values ^ (values >> np.uint64(33))) * _MIX_2
    return values ^ (values >> np.uint64(33))


@cache
def _powers(length: int) -> tuple[U64, U64]:
    inverse = pow(_BASE, -1, 1 << 64)
    return _geometric(_BASE, length), _geometric(inverse, length)


def _geometric(base: int, length: int) -> U64:
    factors = np.full(length, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)


@cache
def _lower() -> U32:
    """Lower case by code point, where it is one code point; several times faster than `str.lower` beyond ASCII."""
    table = np.arange(_PLANES + 1, dtype=np.uint32)
    for point in range(_PLANES):
        lowered = chr(point).lower()
        if len(lowered) == 1:
            table[point] = ord(lowered)
    return table


@cache
def _classes() -> NDArray[np.uint8]:
    """The role of each code point: not in words, a letter or digit, or a word by itself."""
    table = np.zeros(_PLANES + 1, np.uint8)
    for point in range(_PLANES):
        character = chr(point)
        if character.isalnum() or character == "_":
            table[point] = _LETTER
    marks = [point for point in range(0x300, 0x20000) if chr(point).isidentifier() or f"a{chr(point)}".isidentifier()]
    table[marks] = np.maximum(table[marks], _LETTER)  # combining marks continue a word
    for low, high in _WORDS_WITHOUT_SPACES:
        table[low : high + 1] = np.where(table[low : high + 1] == _LETTER, _IDEOGRAPH, _SEPARATOR)
    return table
