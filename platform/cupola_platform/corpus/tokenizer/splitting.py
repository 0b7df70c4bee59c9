"""Qwen's pre-tokenization on whole arrays of characters, without a regular expression.

The pattern (`qwen_tokenizer.PATTERN`) distinguishes only five kinds of characters, and its greedy matches depend only
on the boundaries of runs of one kind and on their neighbours. So a few passes over the runs find all words.
"""

from functools import cache

import numpy as np
import regex
from numpy.typing import NDArray

SIGN, LETTER, NUMBER, NEWLINE, SPACE, END = range(6)
"""Kinds of characters. SPACE: white space except CR and LF. SIGN: everything else. END: the inserted end of a
document."""

APOSTROPHE, BLANK = 0x27, 0x20
_POINTS = 0x110000


@cache
def kinds_of_characters() -> NDArray[np.uint8]:
    """The kind of each Unicode code point. Shape [0x110000]."""
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
    """The starts of the words.

    Args:
        points: the documents' code points, with one arbitrary extra character after each document. Shape [characters].
        ends: the positions of those characters, which become separate words; the last is the array's last.

    Returns:
        Positions in `points`, ascending. Shape [words].
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

    # ` ?[^\s\p{L}\p{N}]+[\r\n]*`: signs include one preceding blank and the following newlines
    sign = kind == SIGN
    spaced = sign & (before == SPACE) & (points[runs - 1] == BLANK)
    begins[runs[sign & ~spaced]] = True
    # `[^\r\n\p{L}\p{N}]?\p{L}+`: letters include a preceding single sign, or the last white space
    alone = sign & ~spaced & (runs == last) & (after == LETTER)
    taken = np.concatenate([[False], alone[:-1]]) | (before == SPACE)
    begins[runs[(kind == LETTER) & ~taken]] = True
    # `(?i:'s|'t|'re|'ve|'m|'ll|'d)`: what follows is a separate word
    begins[_after_contractions(points, runs[alone & (points[runs] == APOSTROPHE)])] = True
    # `\s*[\r\n]+`: white space up to the last newline is one word, except newlines that belong to signs
    begins[runs[(kind == NEWLINE) & (before != SIGN) & (before != SPACE)]] = True
    space = kind == SPACE
    inner = (after == NEWLINE) & (before == NEWLINE) & (earlier != SIGN)
    begins[runs[space & ~inner]] = True
    # `\s+(?!\S)|\s+`: the last white space before anything else is separate from the rest
    begins[last[space & (after != NEWLINE) & (after != END)]] = True
    return np.flatnonzero(begins)


def bytes_and_words(
    text: str, ends: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The text in UTF-8 with 16 padding bytes, and the starts of its words in characters and in bytes."""
    data = np.frombuffer(text.encode() + bytes(16), np.uint8)
    if text.isascii():
        starts = word_starts(data[:-16], ends)
        return data, (starts, starts)
    points = np.frombuffer(text.encode("utf-32-le"), "<u4")
    starts = word_starts(points, ends)
    begins = np.flatnonzero((data[:-16] & 0xC0) != 0x80)  # bytes that start a character
    return data, (starts, begins[starts])


def _after_contractions(points: NDArray[np.unsignedinteger], apostrophes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The ends of the contractions that start at `apostrophes`, each of which is followed by a letter."""
    first = points[apostrophes + 1]
    second = points[np.minimum(apostrophes + 2, len(points) - 1)]
    short = _one_of(first, "sStTmMdDſ")
    long = (_one_of(first, "rRvV") & _one_of(second, "eE")) | (_one_of(first, "lL") & _one_of(second, "lL"))
    return np.concatenate([apostrophes[short] + 2, apostrophes[long] + 3])


def _one_of(points: NDArray[np.unsignedinteger], letters: str) -> NDArray[np.bool_]:
    return np.isin(points, np.array([ord(letter) for letter in letters], np.uint32))
