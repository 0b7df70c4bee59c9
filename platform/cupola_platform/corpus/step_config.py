"""What the steps of cleaning are told. Light to import: recipes embed it."""

from typing import Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from cupola_platform.corpus.source_config import STRICT, Source, SourceName


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LanguageConfig:
    """Which languages to keep."""

    keep: tuple[str, ...] = ()
    """ISO 639 codes as py3langid gives them (`en`, `zh`), and `code` for programs; empty to keep all."""

    min_confidence: float = Field(default=0.3, ge=0, le=1)
    """Prose whose language is less sure than this is dropped. Markdown with much code in it stays above 0.3."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class QualityConfig:
    """Heuristics of Gopher (Rae et al. 2021, table A1), C4 (Raffel et al. 2020) and FineWeb (Penedo et al. 2024).

    Words of languages written without spaces are counted by character, and rules about English or about prose do not
    bind them or code.
    """

    min_words: int = Field(default=50, ge=0)
    """Fewest words of a document (code: words and identifiers)."""

    max_words: int = Field(default=100_000, ge=1)
    """Most words of a prose document (Gopher)."""

    min_mean_word_length: float = Field(default=3.0, ge=0)
    """Characters, for languages with spaces (Gopher)."""

    max_mean_word_length: float = Field(default=10.0, gt=0)
    """Characters, for languages with spaces (Gopher)."""

    max_symbol_ratio: float = Field(default=0.1, ge=0)
    """Hash signs and ellipses per word of prose (Gopher)."""

    max_bullet_lines: float = Field(default=0.9, ge=0, le=1)
    """Share of prose lines that begin with a bullet (Gopher)."""

    max_ellipsis_lines: float = Field(default=0.3, ge=0, le=1)
    """Share of prose lines that end with an ellipsis (Gopher)."""

    min_alphabetic_words: float = Field(default=0.6, ge=0, le=1)
    """Share of words with a letter. Gopher's 0.8 loses technical text with tables."""

    min_alphabetic_characters: float = Field(default=0.25, ge=0, le=1)
    """Share of letters among a code file's characters: below, it is data (StarCoder)."""

    max_mean_line_length: float = Field(default=100.0, gt=0)
    """Characters per line of code: above, it is generated or minified (StarCoder)."""

    min_stop_words: int = Field(default=2, ge=0)
    """Different English stop words of an English document (Gopher)."""

    max_duplicate_line_characters: float = Field(default=0.3, ge=0, le=1)
    """Share of characters in lines seen before in the same document (Gopher's 0.2 is for web pages)."""

    max_repeated_ngram_characters: float = Field(default=0.2, ge=0, le=1)
    """Share of characters covered by the most frequent 2-gram of prose words; 3- and 4-grams get 0.02 less each (Gopher)."""

    min_punctuated_lines: float = Field(default=0.05, ge=0, le=1)
    """Share of prose lines that end a sentence. FineWeb's 0.12 is for web pages; manuals have lists and examples."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DeduplicationConfig:
    """Exact and near-duplicate removal, over all sources together; the first of a cluster stays."""

    near: bool = True
    """Remove near duplicates by MinHash-LSH; false for exact ones only."""

    threshold: float = Field(default=0.8, gt=0, le=1)
    """Jaccard similarity of shingle sets from which documents are near duplicates."""

    num_permutations: int = Field(default=112, ge=16, le=1024)
    """Hash functions of a MinHash signature."""

    ngram: int = Field(default=5, ge=1)
    """Words (for Chinese, Japanese and the like: characters) of a shingle."""


PersonalKind = Literal["identity", "email", "ip", "phone"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PersonalDataConfig:
    """What identifies a person is replaced by `<email>`, `<phone>`, `<ip>` and `<identity>`.

    Example domains, private and reserved addresses, version numbers and numbers whose checksum is wrong stay.
    """

    kinds: tuple[PersonalKind, ...] = Field(default=("identity", "email", "ip", "phone"), min_length=1)
    """`identity`: payment cards, IBANs, Chinese resident identity numbers and Brazilian CPFs (all by their checksums), US
    social security numbers (by their form)."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DecontaminationConfig:
    """Documents that hold test items of evaluations are dropped."""

    against: dict[SourceName, Source] = Field(default_factory=dict)
    """Evaluation sets, by name: a row (`text_field`, such as `question`) or a file is one item."""

    tasks: bool = False
    """The questions that the recipe's own `conversations` stages hold out, too."""

    ngram: int = Field(default=13, ge=3)
    """Words in a row that a document may not share with an item (Qwen)."""

    common_subsequence: bool = True
    """Look for items with words changed, left out or put in, too (Qwen2.5)."""

    min_common: int = Field(default=13, ge=1)
    """Words of the longest common subsequence from which a document is contaminated (Qwen2.5)..."""

    min_share: float = Field(default=0.6, gt=0, le=1)
    """...if they are also this share of the shorter of the two."""

    @model_validator(mode="after")
    def _something_to_check(self) -> "DecontaminationConfig":
        if not self.against and not self.tasks:
            raise ValueError("name evaluation sets in `against`, or set tasks: true; else leave decontamination out")
        return self
