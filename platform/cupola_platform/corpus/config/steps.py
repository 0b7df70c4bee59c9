"""Settings of the cleaning steps. Light to import: recipes embed them."""

from typing import Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from cupola_platform.corpus.config.sources import Source, SourceName
from cupola_platform.strict import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LanguageConfig:
    """Which languages to keep."""

    keep: tuple[str, ...] = ()
    """ISO 639 codes as py3langid gives them (`en`, `zh`), and `code` for programs; empty to keep all."""

    min_confidence: float = Field(default=0.3, ge=0, le=1)
    """Prose identified with less confidence than this is dropped. Markdown with much code in it stays above 0.3."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DeduplicationConfig:
    """Exact and near-duplicate removal, over all sources together; the first of a cluster stays."""

    near: bool = True
    """Remove near duplicates by MinHash-LSH; false for exact ones only."""

    threshold: float = Field(default=0.8, gt=0, le=1)
    """Documents are near duplicates from this Jaccard similarity of their shingle sets on."""

    num_permutations: int = Field(default=112, ge=16, le=1024)
    """Hash functions of a MinHash signature."""

    ngram: int = Field(default=5, ge=1)
    """Words per shingle (characters in Chinese, Japanese and the like)."""


PersonalKind = Literal["identity", "email", "ip", "phone"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PersonalDataConfig:
    """Replaces personal data by `<email>`, `<phone>`, `<ip>` and `<identity>`.

    Example domains, private and reserved addresses, version numbers and numbers whose checksum is wrong stay.
    """

    kinds: tuple[PersonalKind, ...] = Field(default=("identity", "email", "ip", "phone"), min_length=1)
    """`identity`: payment cards, IBANs, Chinese resident identity numbers and Brazilian CPFs (all by their checksums),
    US social security numbers (by their form)."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DecontaminationConfig:
    """Drops documents that contain test items of evaluations."""

    against: dict[SourceName, Source] = Field(default_factory=dict)
    """Evaluation sets, by name: a row (`text_field`, such as `question`) or a file is one item."""

    tasks: bool = False
    """Also the prompts that the recipe's own `conversations` stages hold out."""

    ngram: int = Field(default=13, ge=3)
    """A document that shares this many consecutive words with an item is contaminated (Qwen)."""

    common_subsequence: bool = True
    """Also look for items with words changed, removed or inserted (Qwen2.5)."""

    min_common: int = Field(default=13, ge=1)
    """A document is contaminated from this many words of the longest common subsequence on (Qwen2.5)..."""

    min_share: float = Field(default=0.6, gt=0, le=1)
    """...if they also make up this share of the shorter of the two."""

    @model_validator(mode="after")
    def _something_to_check(self) -> "DecontaminationConfig":
        if not self.against and not self.tasks:
            raise ValueError("name evaluation sets in `against`, or set tasks: true; else leave decontamination out")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RepeatsConfig:
    """Removes paragraphs and lines that occur in many documents (menus, notices, licences) from all but the first."""

    units: tuple[Literal["paragraph", "line"], ...] = Field(default=("paragraph",), min_length=1)
    """Units to compare, in this order. Empty lines separate paragraphs."""

    min_documents: int = Field(default=3, ge=2)
    """A unit that occurs in this many documents is boilerplate."""

    min_characters: int = Field(default=20, ge=1)
    """Shorter ones stay: headings and list items are in many documents."""

    code: bool = False
    """Remove them from programs, too, which may then no longer run."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PerplexityConfig:
    """Drops documents whose bits per byte under one of our models are out of bounds; the stage's `judge` names the
    model.

    Bounds are the model's: look at its held-out bits per byte, and at the report's examples.
    """

    max_bits_per_byte: float = Field(default=4.0, gt=0)
    """Above it, a text is unlike what the model was trained on: noise, lists, other languages."""

    min_bits_per_byte: float = Field(default=0.3, ge=0)
    """Below it, a text repeats itself or was memorized."""

    max_percentile: float | None = Field(default=None, gt=0, lt=100)
    """Of each language (and of code), documents above this percentile of its bits per byte are dropped, too: 30 keeps
    what CCNet calls the head, 60 head and middle. None for the bounds alone, which come first: one number fits no two
    languages."""

    max_bytes: int = Field(default=4096, ge=64)
    """Bytes of a document's beginning that are read, at most; no more tokens than the model has positions."""

    languages: tuple[str, ...] = ()
    """Judge documents of these languages only, which the model knows; empty for all."""
