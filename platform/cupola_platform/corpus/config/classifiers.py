"""Settings of classifiers and word lists. Light to import: recipes embed them."""

from pathlib import Path

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from cupola_platform.corpus.config.sources import Source, SourceName
from cupola_platform.strict import STRICT

ANY_LANGUAGE = "*"
"""Key of a word list that applies to documents of any language."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClassifierConfig:
    """A linear classifier of hashed words and word pairs, trained on labelled sources or loaded from an earlier
    preparation."""

    positive: dict[SourceName, Source] = Field(default_factory=dict)
    """Sources of the class to recognize."""

    negative: dict[SourceName, Source] = Field(default_factory=dict)
    """Sources of everything else; a sample of the corpus itself works best."""

    model: Path | None = None
    """Folder of a classifier trained by an earlier preparation (`models/NAME` of its artifact), instead of the
    sources."""

    max_bytes: int = Field(default=20_000_000, ge=1)
    """At most this much text of each class is trained on."""

    @model_validator(mode="after")
    def _one_origin(self) -> "ClassifierConfig":
        if bool(self.model) == bool(self.positive or self.negative) or bool(self.positive) != bool(self.negative):
            raise ValueError(
                "give `positive` and `negative` sources to learn from, or the `model` of an earlier preparation"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class QualityModelConfig(ClassifierConfig):
    """Documents that the classifier finds unlike the positive sources are dropped."""

    min_score: float = Field(default=0.5, gt=0, lt=1)
    """A document is dropped below this probability of the positive class; at 0.5 the classifier is undecided."""

    languages: tuple[str, ...] = ()
    """Score only documents in these languages (the classifier knows only those of its sources); empty for all."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ToxicityConfig:
    """Drops documents with many words from a list, or that a classifier finds toxic."""

    lexicon: dict[str, Path] = Field(default_factory=dict)
    """Language (`*` for any) to a file with a word or phrase a line, in UTF-8. None is shipped: published ones are
    LDNOOBW's (28 languages; C4 used it), in npm's package naughty-words."""

    min_matches: int = Field(default=3, ge=1)
    """A document is toxic from this many matches on..."""

    max_share: float = Field(default=0.01, ge=0, lt=1)
    """...if they also make up more than this share of its words. C4 drops at the first match: `{min_matches: 1,
    max_share: 0}`."""

    classifier: ClassifierConfig | None = None
    """Trained on toxic (positive) and other (negative) documents."""

    max_score: float = Field(default=0.9, gt=0, lt=1)
    """A document is dropped above this probability of the toxic class."""

    @model_validator(mode="after")
    def _something_to_look_for(self) -> "ToxicityConfig":
        if not self.lexicon and self.classifier is None:
            raise ValueError("give a `lexicon`, a `classifier` or both; else leave toxicity out")
        return self
