"""Limits of the quality rules. Light to import, because recipes embed them."""

from dataclasses import fields, replace
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, field_validator
from pydantic.dataclasses import dataclass

from cupola_platform.corpus.core.language_rules import LANGUAGE_RULES
from cupola_platform.nearest import did_you_mean
from cupola_platform.strict import STRICT

RuleFamily = Literal["gopher", "gopher_repetition", "c4", "fineweb", "code"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class QualityRules:
    """Limits of the rules. If a default is looser than the published value, its docstring gives the latter."""

    min_words: int = Field(default=50, ge=0)
    """Minimum words of a document (Gopher); for code, words and identifiers. In scripts without spaces, words are
    estimated from characters."""

    max_words: int = Field(default=100_000, ge=1)
    """Maximum words of a prose document (Gopher)."""

    min_mean_word_length: float = Field(default=3.0, ge=0)
    """Minimum mean characters per word, for languages with spaces (Gopher)."""

    max_mean_word_length: float = Field(default=10.0, gt=0)
    """Maximum mean characters per word, for languages with spaces (Gopher)."""

    max_symbol_ratio: float = Field(default=0.1, ge=0)
    """Maximum hash signs and ellipses per word of prose (Gopher)."""

    max_bullet_lines: float = Field(default=0.9, ge=0, le=1)
    """Maximum share of prose lines that start with a bullet (Gopher)."""

    max_ellipsis_lines: float = Field(default=0.3, ge=0, le=1)
    """Maximum share of prose lines that end with an ellipsis (Gopher)."""

    min_alphabetic_words: float = Field(default=0.6, ge=0, le=1)
    """Minimum share of words that contain a letter. Gopher's 0.8 drops technical text with tables."""

    min_stop_words: int = Field(default=2, ge=0)
    """Minimum distinct stop words of the document's language, if a list is known (Gopher, for English)."""

    max_duplicate_lines: float = Field(default=0.3, ge=0, le=1)
    """Maximum share of lines that repeat an earlier one of the document (Gopher). Lines of up to 10 characters, such as
    brackets and `else:`, do not count."""

    max_duplicate_line_characters: float = Field(default=0.3, ge=0, le=1)
    """Maximum share of characters in such lines (Gopher's 0.2 is for web pages). For code, only this limit applies."""

    max_duplicate_paragraphs: float = Field(default=0.3, ge=0, le=1)
    """Maximum share of prose paragraphs that repeat an earlier one of the document (Gopher)."""

    max_duplicate_paragraph_characters: float = Field(default=0.3, ge=0, le=1)
    """Maximum share of characters in such paragraphs (Gopher's 0.2 is for web pages)."""

    max_repeated_ngram_characters: float = Field(default=0.2, ge=0, le=1)
    """Maximum share of characters in the most frequent 2-gram of prose words; 0.02 less for 3-grams and again for
    4-grams (Gopher). In scripts without spaces, n-grams have twice as many characters."""

    max_duplicate_ngram_characters: float = Field(default=0.5, ge=0, le=1)
    """Maximum share of characters in 5-grams of words that occurred before; 0.01 less for each of 6- to 10-grams.
    Gopher's 0.15 is for web pages; manuals repeat their phrases."""

    min_sentences: int = Field(default=0, ge=0)
    """Minimum sentence ends in a prose document. C4's 3 (or 5) drops lists and tables of technical text."""

    max_curly_lines: float = Field(default=1.0, ge=0, le=1)
    """Maximum share of prose lines with a curly bracket. C4's 0 drops any text about programs."""

    max_notice_lines: float = Field(default=0.2, ge=0, le=1)
    """Maximum share of lines that mention JavaScript, cookies or terms of use (C4 drops those lines)."""

    min_punctuated_lines: float = Field(default=0.05, ge=0, le=1)
    """Minimum share of prose lines that end a sentence. FineWeb's 0.12 is for web pages; manuals have lists and
    examples."""

    max_short_lines: float = Field(default=0.9, ge=0, le=1)
    """Maximum share of prose lines of up to `short_line_characters` (FineWeb's 0.67 is for web pages)."""

    short_line_characters: int = Field(default=30, ge=1)
    """Characters of a short line (FineWeb's 30); fewer in languages that say more per character."""

    max_newlines_per_word: float = Field(default=0.6, ge=0)
    """Maximum newlines per word of prose (FineWeb's 0.3 is for web pages)."""

    min_alphabetic_characters: float = Field(default=0.25, ge=0, le=1)
    """Minimum share of letters in a code file; below it, the file is data (StarCoder)."""

    max_mean_line_length: float = Field(default=100.0, gt=0)
    """Maximum mean characters per line of code; above it, the file is generated or minified (StarCoder)."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class QualityConfig(QualityRules):
    """Heuristics of Gopher (Rae et al. 2021, table A1), C4 (Raffel et al. 2020) and FineWeb (Penedo et al. 2024); for
    code, StarCoder's (Li et al. 2023)."""

    rules: tuple[RuleFamily, ...] = Field(
        default=("gopher", "gopher_repetition", "c4", "fineweb", "code"), min_length=1
    )
    """Rule families to apply."""

    languages: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Limits per language, such as `{de: {max_mean_word_length: 14}}`. They override the general and built-in
    limits."""

    @field_validator("languages")
    @classmethod
    def _known_limits(cls, given: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        known = [field.name for field in fields(QualityRules)]
        for language, limits in given.items():
            for name in limits:
                if name not in known:
                    raise ValueError(f"{language}: there is no limit {name!r}.{did_you_mean(name, known)}")
            try:
                TypeAdapter(QualityRules).validate_python(limits)
            except ValidationError as error:
                wrong = error.errors()[0]
                raise ValueError(f"{language}.{wrong['loc'][0]}={wrong['input']}: {wrong['msg']}") from None
        return given

    def of(self, language: str) -> QualityRules:
        """The limits for a language: the recipe's, else the built-in ones, else the general ones."""
        limits: dict[str, Any] = {**LANGUAGE_RULES.get(language, {}), **self.languages.get(language, {})}
        return replace(self, **limits) if limits else self
