"""Published heuristics that select text worth training on, by name.

Gopher: Rae et al. 2021, table A1. C4: Raffel et al. 2020, section 2.2. FineWeb: Penedo et al. 2024, section 3.6.
StarCoder: Li et al. 2023, section 3.2 (code). Words are those of `shingles`: in scripts without spaces each character
is a word, so rules about words convert by the mean characters per word.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from cupola_platform.corpus.config.quality import QualityConfig, QualityRules
from cupola_platform.corpus.core.documents import Document, Drop, drop
from cupola_platform.corpus.core.language_rules import (
    BULLETS,
    CHARACTERS_PER_WORD,
    CLOSERS,
    SAME_WRITING,
    STOP_PIECES,
    STOP_WORDS,
    TERMINALS,
)
from cupola_platform.corpus.core.shingles import Words, hashed_words, word_spans
from cupola_platform.corpus.filters.language import CODE
from cupola_platform.corpus.filters.repetition import repeated_characters, repeated_pieces, top_ngram

ENDS = (*TERMINALS, *CLOSERS)
SHORT_LINE = 10
"""Lines of up to this many characters may repeat, as closing brackets and `else:` do in good code."""

_WORD = re.compile(r"\w+")
_PARAGRAPH = re.compile(r"\n\s*\n")
_SENTENCE_END = re.compile(
    f"[{''.join(TERMINALS).replace(':', '').replace('：', '')}]+[{re.escape(CLOSERS)}]*(?=\\s|$|[^\\x00-\\x7f])"
)
_NOTICE = re.compile(r"javascript|terms of use|privacy policy|cookie policy|uses? (?:of )?cookies", re.IGNORECASE)

Finding = tuple[str, str]
"""A reason and the value that broke the rule."""


@dataclass(frozen=True)
class QualityFilter:
    """Drops documents that break a rule; the first broken rule is the reason."""

    config: QualityConfig
    exempt: frozenset[str] = frozenset()
    """Sources exempt from the rules: conversations."""
    name: str = "quality"

    def __call__(self, documents: Sequence[Document]) -> list[Document | Drop]:
        words = hashed_words([document.text for document in documents])
        outcomes: list[Document | Drop] = []
        for place, document in enumerate(documents):
            text = Text(document.text, written_as(document.language), words, place)
            finding = None if document.source in self.exempt else next(broken(text, self.config), None)
            outcomes.append(drop(document, *finding) if finding else document)
        return outcomes


@dataclass
class Text:
    """One text and the features that the rules use."""

    text: str
    language: str
    words: Words
    place: int
    """Index of the text in `words`."""
    lines: list[str] = field(init=False)
    """Non-empty lines, stripped."""

    def __post_init__(self) -> None:
        self.lines = [line.strip() for line in self.text.splitlines() if line.strip()]

    @property
    def spaced(self) -> bool:
        return self.language not in CHARACTERS_PER_WORD

    @cached_property
    def parts(self) -> list[str]:
        """Words with their punctuation; in scripts without spaces, runs of letters."""
        return self.text.split() if self.spaced else _WORD.findall(self.text)

    @cached_property
    def count(self) -> int:
        """Number of words, estimated in scripts without spaces."""
        return len(self.parts) if self.spaced else round(sum(map(len, self.parts)) / CHARACTERS_PER_WORD[self.language])


def written_as(language: str) -> str:
    """The language whose rules apply to this language."""
    return SAME_WRITING.get(language, language)


def broken(text: Text, config: QualityConfig) -> Iterator[Finding]:
    """All rules that a text breaks, cheapest first."""
    rules = config.of(text.language)
    if text.language == CODE:
        if "gopher_repetition" in config.rules:
            yield from _lines_repeat(text, rules)
        if "code" in config.rules:
            yield from _code(text, rules)
        return
    if text.count < rules.min_words:
        yield "too few words", f"{text.count} words"
        return
    families = {"gopher": _gopher, "c4": _c4, "fineweb": _fineweb, "gopher_repetition": _repetition}
    for name, family in families.items():
        if name in config.rules:
            yield from family(text, rules)


def _code(text: Text, rules: QualityRules) -> Iterator[Finding]:
    words = len(_WORD.findall(text.text))
    if words < rules.min_words:
        yield "too few words", f"{words} words"
    mean = sum(map(len, text.lines)) / max(len(text.lines), 1)
    if mean > rules.max_mean_line_length:
        yield "long lines of code", f"{mean:.0f} characters a line"
    letters = sum(map(len, re.findall(r"[^\W\d_]+", text.text)))
    if letters < rules.min_alphabetic_characters * len(text.text):
        yield "code that is data", f"{letters / len(text.text):.2f} letters"


def _gopher(text: Text, rules: QualityRules) -> Iterator[Finding]:
    if text.count > rules.max_words:
        yield "too many words", f"{text.count:,} words"
    alphabetic = sum(any(map(str.isalpha, word)) for word in text.parts) / max(len(text.parts), 1)
    if alphabetic < rules.min_alphabetic_words:
        yield "words without letters", f"{alphabetic:.2f} of words have one"
    if text.spaced:
        plain = [word for word in text.parts if "://" not in word] or text.parts  # links and badges are not words
        mean = sum(map(len, plain)) / max(len(plain), 1)
        if not rules.min_mean_word_length <= mean <= rules.max_mean_word_length:
            yield "mean word length", f"{mean:.1f} characters"
    yield from _stop_words(text, rules)
    symbols = (text.text.count("#") + text.text.count("...") + text.text.count("…")) / max(text.count, 1)
    if symbols > rules.max_symbol_ratio:
        yield "symbols", f"{symbols:.2f} a word"
    if (bullets := _share(text, BULLETS, "startswith")) > rules.max_bullet_lines:
        yield "bullet lines", f"{bullets:.2f} of lines"
    if (ellipses := _share(text, ("...", "…", "。。。"), "endswith")) > rules.max_ellipsis_lines:
        yield "ellipsis lines", f"{ellipses:.2f} of lines"


def _stop_words(text: Text, rules: QualityRules) -> Iterator[Finding]:
    if words := STOP_WORDS.get(text.language):
        present = len(words.intersection(map(str.lower, text.parts)))
    elif pieces := STOP_PIECES.get(text.language):
        present = sum(piece in text.text for piece in pieces)
    else:
        return
    if present < rules.min_stop_words:
        yield "few stop words", f"{present} different ones"


def _c4(text: Text, rules: QualityRules) -> Iterator[Finding]:
    if "lorem ipsum" in text.text.lower():
        yield "lorem ipsum", ""
    if rules.min_sentences and (ends := len(_SENTENCE_END.findall(text.text))) < rules.min_sentences:
        yield "few sentences", f"{ends} ends of sentences"
    curly = sum("{" in line or "}" in line for line in text.lines) / max(len(text.lines), 1)
    if curly > rules.max_curly_lines:
        yield "curly brackets", f"{curly:.2f} of lines"
    notices = sum(_NOTICE.search(line) is not None for line in text.lines) / max(len(text.lines), 1)
    if notices > rules.max_notice_lines:
        yield "notices of a web site", f"{notices:.2f} of lines"


def _fineweb(text: Text, rules: QualityRules) -> Iterator[Finding]:
    ends = _share(text, ENDS, "endswith")
    if ends < rules.min_punctuated_lines:
        yield "lines without punctuation", f"{ends:.2f} of lines end a sentence"
    short = sum(len(line) <= rules.short_line_characters for line in text.lines) / max(len(text.lines), 1)
    if short > rules.max_short_lines:
        yield "short lines", f"{short:.2f} of lines"
    newlines = len(text.lines) / max(text.count, 1)
    if newlines > rules.max_newlines_per_word:
        yield "newlines", f"{newlines:.2f} a word"


def _repetition(text: Text, rules: QualityRules) -> Iterator[Finding]:
    yield from _lines_repeat(text, rules)
    paragraphs = [part.strip() for part in _PARAGRAPH.split(text.text) if len(part.strip()) > SHORT_LINE]
    count, characters = repeated_pieces(paragraphs)
    if len(paragraphs) > 2 and count > rules.max_duplicate_paragraphs * len(paragraphs):
        yield "repeated paragraphs", f"{count / len(paragraphs):.2f} of paragraphs"
    if characters > rules.max_duplicate_paragraph_characters * len(text.text):
        yield "repeated paragraphs", f"{characters / len(text.text):.2f} of all characters"
    yield from _ngrams_repeat(text, rules)


def _lines_repeat(text: Text, rules: QualityRules) -> Iterator[Finding]:
    long = [line for line in text.lines if len(line) > SHORT_LINE]
    count, characters = repeated_pieces(long)
    total = sum(map(len, text.lines))
    if characters > rules.max_duplicate_line_characters * total:
        yield "repeated lines", f"{characters / total:.2f} of all characters"
    elif text.language != CODE and count > rules.max_duplicate_lines * len(text.lines):
        yield "repeated lines", f"{count / len(text.lines):.2f} of lines"


def _ngrams_repeat(text: Text, rules: QualityRules) -> Iterator[Finding]:
    words, lengths = text.words.of(text.place), text.words.lengths_of(text.place)
    total = max(int(lengths.sum()), 1)
    characters = 1 if text.spaced else 2
    for n in (2, 3, 4):
        often, size, place = top_ngram(words, lengths, n * characters)
        share = often * size / total
        if often > 2 and share > rules.max_repeated_ngram_characters - 0.02 * (n - 2):
            spans = word_spans(text.text)[place : place + n * characters]
            phrase = " ".join(text.text[spans[0, 0] : spans[-1, 1]].split())
            yield "repeated phrase", f"{share:.2f} of characters are {phrase[:60]!r}"
    for n in range(5, 11):
        limit = rules.max_duplicate_ngram_characters - 0.01 * (n - 5)
        share = repeated_characters(words, lengths, n * characters) / total
        if share > limit:
            yield "repeated phrases", f"{share:.2f} of characters came before in runs of {n} words"
        if share <= rules.max_duplicate_ngram_characters - 0.05:
            return  # longer runs are within these


def _share(text: Text, marks: tuple[str, ...], side: str) -> float:
    """Share of lines that start or end with one of the marks."""
    return float(np.mean([getattr(line, side)(marks) for line in text.lines])) if text.lines else 0.0
