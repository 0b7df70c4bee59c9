"""Rules of thumb that tell text worth learning from the rest, as published and with their names.

Gopher: Rae et al. 2021, table A1. C4: Raffel et al. 2020, section 2.2. FineWeb: Penedo et al. 2024, section 3.6.
StarCoder: Li et al. 2023, section 3.2 (code).
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cupola_platform.corpus.config import QualityConfig
from cupola_platform.corpus.documents import Document, Drop, drop
from cupola_platform.corpus.language import CODE, WITHOUT_SPACES

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with", "a", "in", "is", "for"})
BULLETS = ("-", "*", "•", "‣", "▪", "+ ")
ENDS = (".", "!", "?", ":", '"', "'", "”", "’", ")", "`", "。", "！", "？", "」", "』", "…", "：", "）", "؟", "।")

_WORD = re.compile(r"\w+")

Finding = tuple[str, str]
"""A reason and the number that broke the rule."""


@dataclass(frozen=True)
class QualityFilter:
    """Drop documents that break a rule; the first one broken is the reason."""

    config: QualityConfig
    name: str = "quality"

    def __call__(self, documents: Sequence[Document]) -> list[Document | Drop]:
        kept: list[Document | Drop] = []
        for document in documents:
            finding = next(findings(document.text, document.language, self.config), None)
            kept.append(drop(document, *finding) if finding else document)
        return kept


def findings(text: str, language: str, config: QualityConfig) -> Iterator[Finding]:
    """Every rule that a text breaks, cheapest first."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    yield from _lines_repeat(lines, config)
    if language == CODE:
        yield from _code(text, lines, config)
    else:
        yield from _prose(text, lines, language, config)


def _lines_repeat(lines: Sequence[str], config: QualityConfig) -> Iterator[Finding]:
    counts = Counter(line for line in lines if len(line) > 10)  # closing brackets and `else:` repeat in good code
    total = sum(map(len, lines))
    repeated = sum(len(line) * (count - 1) for line, count in counts.items())
    if repeated > config.max_duplicate_line_characters * total:
        yield "repeated lines", f"{repeated / total:.2f} of all characters"


def _code(text: str, lines: Sequence[str], config: QualityConfig) -> Iterator[Finding]:
    words = len(_WORD.findall(text))
    if words < config.min_words:
        yield "too few words", f"{words} words"
    mean = sum(map(len, lines)) / max(len(lines), 1)
    if mean > config.max_mean_line_length:
        yield "long lines of code", f"{mean:.0f} characters a line"
    letters = sum(map(len, re.findall(r"[^\W\d_]+", text)))
    if letters < config.min_alphabetic_characters * len(text):
        yield "code that is data", f"{letters / len(text):.2f} letters"


def _prose(text: str, lines: Sequence[str], language: str, config: QualityConfig) -> Iterator[Finding]:
    spaced = language not in WITHOUT_SPACES
    words = text.split() if spaced else _WORD.findall(text)
    count = len(words) if spaced else sum(map(len, words))
    if count < config.min_words:
        yield "too few words", f"{count} words"
        return
    if count > config.max_words:
        yield "too many words", f"{count:,} words"
    yield from _words(words, language, config)
    yield from _line_shapes(text, lines, count, config)
    if "lorem ipsum" in text.lower():
        yield "lorem ipsum", ""
    if spaced:
        yield from _ngrams_repeat(words, config)


def _words(words: Sequence[str], language: str, config: QualityConfig) -> Iterator[Finding]:
    alphabetic = sum(any(map(str.isalpha, word)) for word in words) / len(words)
    if alphabetic < config.min_alphabetic_words:
        yield "words without letters", f"{alphabetic:.2f} of words have one"
    if language in WITHOUT_SPACES:
        return
    plain = [word for word in words if "://" not in word] or words  # links and badges are not words
    mean = sum(map(len, plain)) / len(plain)
    if not config.min_mean_word_length <= mean <= config.max_mean_word_length:
        yield "mean word length", f"{mean:.1f} characters"
    if language == "en":
        present = len(STOP_WORDS.intersection(map(str.lower, words)))
        if present < config.min_stop_words:
            yield "few stop words", f"{present} different ones"


def _line_shapes(text: str, lines: Sequence[str], words: int, config: QualityConfig) -> Iterator[Finding]:
    symbols = (text.count("#") + text.count("...") + text.count("…")) / words
    if symbols > config.max_symbol_ratio:
        yield "symbols", f"{symbols:.2f} a word"
    bullets = sum(line.startswith(BULLETS) for line in lines) / len(lines)
    if bullets > config.max_bullet_lines:
        yield "bullet lines", f"{bullets:.2f} of lines"
    ellipses = sum(line.endswith(("...", "…")) for line in lines) / len(lines)
    if ellipses > config.max_ellipsis_lines:
        yield "ellipsis lines", f"{ellipses:.2f} of lines"
    ends = sum(line.endswith(ENDS) for line in lines) / len(lines)
    if ends < config.min_punctuated_lines:
        yield "lines without punctuation", f"{ends:.2f} of lines end a sentence"


def _ngrams_repeat(words: Sequence[str], config: QualityConfig) -> Iterator[Finding]:
    total = sum(map(len, words))
    for n in (2, 3, 4):
        grams = Counter(zip(*(words[start:] for start in range(n)), strict=False))
        gram, count = grams.most_common(1)[0]
        share = count * sum(map(len, gram)) / total
        if count > 2 and share > config.max_repeated_ngram_characters - 0.02 * (n - 2):
            yield "repeated phrase", f"{share:.2f} of characters are {' '.join(gram)[:60]!r}"
