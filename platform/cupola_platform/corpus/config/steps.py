"""Settings of the cleaning steps. Light to import, because recipes embed them."""

from typing import Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from cupola_platform.corpus.config.sources import Source, SourceName
from cupola_platform.strict import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LanguageConfig:
    """Which languages to keep."""

    keep: tuple[str, ...] = ()
    """ISO 639 codes as returned by py3langid (`en`, `zh`), and `code` for programs; empty keeps all."""

    min_confidence: float = Field(default=0.3, ge=0, le=1)
    """Prose identified with lower confidence is dropped. Markdown with much code in it stays above the default, 0.3."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DeduplicationConfig:
    """Removes exact and near duplicates over all sources together; the first document of a cluster stays."""

    near: bool = True
    """Remove near duplicates by MinHash-LSH; false for exact ones only."""

    threshold: float = Field(default=0.8, gt=0, le=1)
    """Jaccard similarity of shingle sets from which documents are near duplicates."""

    num_permutations: int = Field(default=112, ge=16, le=1024)
    """Hash functions per MinHash signature."""

    ngram: int = Field(default=5, ge=1)
    """Words per shingle; characters in scripts without spaces, such as Chinese and Japanese."""


PersonalKind = Literal["identity", "email", "ip", "phone"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PersonalDataConfig:
    """Replaces personal data with `<email>`, `<phone>`, `<ip>` and `<identity>`.

    Example domains, private and reserved addresses, version numbers and numbers with a wrong checksum are kept.
    """

    kinds: tuple[PersonalKind, ...] = Field(default=("identity", "email", "ip", "phone"), min_length=1)
    """Kinds to mask. `identity`: payment cards, IBANs, Chinese resident identity numbers and Brazilian CPFs (all by
    checksum), and US social security numbers (by format)."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DecontaminationConfig:
    """Drops documents that contain evaluation test items."""

    against: dict[SourceName, Source] = Field(default_factory=dict)
    """Evaluation sets by name; each row (`text_field`, such as `question`) or file is one item."""

    tasks: bool = False
    """Also check the prompts held out by the recipe's own `conversations` stages."""

    ngram: int = Field(default=13, ge=3)
    """Consecutive words shared with an item that make a document contaminated (Qwen)."""

    common_subsequence: bool = True
    """Also find items with words changed, removed or inserted (Qwen2.5)."""

    min_common: int = Field(default=13, ge=1)
    """Words of the longest common subsequence that make a document contaminated (Qwen2.5)..."""

    min_share: float = Field(default=0.6, gt=0, le=1)
    """...if it also covers this share of the shorter text."""

    @model_validator(mode="after")
    def _something_to_check(self) -> "DecontaminationConfig":
        if not self.against and not self.tasks:
            raise ValueError("name evaluation sets in `against`, set tasks: true, or leave decontamination out")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RepeatsConfig:
    """Removes paragraphs and lines that occur in many documents (menus, notices, licences), except in the first."""

    units: tuple[Literal["paragraph", "line"], ...] = Field(default=("paragraph",), min_length=1)
    """Units to compare, in order. Empty lines separate paragraphs."""

    min_documents: int = Field(default=3, ge=2)
    """Documents in which a unit must occur to count as boilerplate."""

    min_characters: int = Field(default=20, ge=1)
    """Shorter units are kept, because headings and list items occur in many documents."""

    code: bool = False
    """Also remove them from programs, which may then no longer run."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PerplexityConfig:
    """Drops documents whose bits per byte under a model are out of bounds. The stage's `judge` names the model.

    Good bounds depend on the model: see its held-out bits per byte and the examples in the report.
    """

    max_bits_per_byte: float = Field(default=4.0, gt=0)
    """Text above it is unlike the model's training data: noise, lists, other languages."""

    min_bits_per_byte: float = Field(default=0.3, ge=0)
    """Text below it is repetitive or memorized."""

    max_percentile: float | None = Field(default=None, gt=0, lt=100)
    """Also drop documents above this percentile of bits per byte within their language (or code), after the bounds: 30
    keeps what CCNet calls the head, 60 head and middle. A percentile fits all languages; an absolute bound does not.
    None applies the bounds only."""

    max_bytes: int = Field(default=4096, ge=64)
    """Maximum bytes scored, from the start of a document; never more tokens than the model has positions."""

    languages: tuple[str, ...] = ()
    """Score only documents in these languages, which the model knows; empty for all."""
