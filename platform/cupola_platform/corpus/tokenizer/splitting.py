"""Qwen's pre-tokenization over whole arrays of characters: where each word begins, without a regular expression.

The pattern (`qwen_tokenizer.PATTERN`) looks at five kinds of characters only, and its greedy choices depend on the
borders between runs of one kind and on their neighbours. So all words of a megabyte are found by a few passes over
its runs.
"""

from functools import cache

import numpy as np
import regex
from numpy.typing import NDArray

SIGN, LETTER, NUMBER, NEWLINE, SPACE, END = range(6)
"""Kinds of characters. SPACE: white space but CR and LF. SIGN: everything else. END: a document's end, put there by
us."""

APOSTROPHE, BLANK = 0x27, 0x20
_POINTS = 0x110000


@cache
def kinds_of_characters() -> NDArray[np.uint8]:
    """The kind of every Unicode code point. Shape [0x110000]."""
    text = np.arange(_POINTS, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    kinds = np.full(_POINTS, SIGN, np.uint8)
    for pattern, kind in ((r"\p{L}+", LETTER), (r"\p{N}+", NUMBER), (r"\s+", SPACE), (r"[\r\n]+", NEWLINE)):
        for match in regex.finditer(pattern, text):
            kinds[match.start() : match.end()] = kind
    return kinds


@cache
def _kinds_of_ascii() -> bytes:
    return kinds_of_characters()[:256].tobytes()


def word_starts(points: NDArray[np.unsignedinteger], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the words begin.

    Args:
        points: the documents' code points, each document with one character more, whatever it is. Shape [characters].
        ends: the places of those characters, which become words of their own; the last is the array's last.

    Returns:
        Places in `points`, ascending. Shape [words].
    """
    if points.dtype == np.uint8:  # ASCII: five times as fast
        kinds = np.frombuffer(bytearray(points.tobytes().translate(_kinds_of_ascii())), np.uint8)
    else:
        kinds = kinds_of_characters()[points]
    kinds[ends] = END
    runs = np.flatnonzero(np.concatenate([[True], kinds[1:] != kinds[:-1]]))
    kind = kinds[runs]
    last = np.append(runs[1:], len(kinds)) - 1
    before = np.concatenate([[END], kind[:-1]])
    earlier = np.concatenate([[END], before[:-1]])
    after = np.append(kind[1:], END)

    begins = np.zeros(len(kinds), bool)
    begins[(kinds == NUMBER) | (kinds == END)] = True

    # ` ?[^\s\p{L}\p{N}]+[\r\n]*`: signs take one blank before them and the line ends after them
    sign = kind == SIGN
    spaced = sign & (before == SPACE) & (points[runs - 1] == BLANK)
    begins[runs[sign & ~spaced]] = True
    # `[^\r\n\p{L}\p{N}]?\p{L}+`: letters take a sign that stands alone, or the last white space
    alone = sign & ~spaced & (runs == last) & (after == LETTER)
    taken = np.concatenate([[False], alone[:-1]]) | (before == SPACE)
    begins[runs[(kind == LETTER) & ~taken]] = True
    # `(?i:'s|'t|'re|'ve|'m|'ll|'d)`: what comes after is a word of its own
    begins[_after_contractions(points, runs[alone & (points[runs] == APOSTROPHE)])] = True
    # `\s*[\r\n]+`: white space up to the last line end is one word, but for line ends that signs took
    begins[runs[(kind == NEWLINE) & (before != SIGN) & (before != SPACE)]] = True
    space = kind == SPACE
    inner = (after == NEWLINE) & (before == NEWLINE) & (earlier != SIGN)
    begins[runs[space & ~inner]] = True
    # `\s+(?!\S)|\s+`: the last white space before anything else parts from the rest
    begins[last[space & (after != NEWLINE) & (after != END)]] = True
    return np.flatnonzero(begins)


def bytes_and_words(
    text: str, ends: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The text in UTF-8 with 16 bytes after it, and where its words begin, in characters and in bytes."""
    data = np.frombuffer(text.encode() + bytes(16), np.uint8)
    if text.isascii():
        starts = word_starts(data[:-16], ends)
        return data, (starts, starts)
    points = np.frombuffer(text.encode("utf-32-le"), "<u4")
    starts = word_starts(points, ends)
    begins = np.flatnonzero((data[:-16] & 0xC0) != 0x80)  # bytes that begin a character
    return data, (starts, begins[starts])


def _after_contractions(points: NDArray[np.unsignedinteger], apostrophes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where contractions end, of those apostrophes that begin one. After each comes a letter."""
    first = points[apostrophes + 1]
    second = points[np.minimum(apostrophes + 2, len(points) - 1)]
    short = _one_of(first, "sStTmMdDſ")
    long = (_one_of(first, "rRvV") & _one_of(second, "eE")) | (_one_of(first, "lL") & _one_of(second, "lL"))
    return np.concatenate([apostrophes[short] + 2, apostrophes[long] + 3])


def _one_of(points: NDArray[np.unsignedinteger], letters: str) -> NDArray[np.bool_]:
    return np.isin(points, np.array([ord(letter) for letter in letters], np.uint32))
