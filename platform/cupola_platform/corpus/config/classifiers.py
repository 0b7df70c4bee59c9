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
    """A linear classifier on hashed words and word pairs, trained on labelled sources or loaded from an earlier
    preparation."""

    positive: dict[SourceName, Source] = Field(default_factory=dict)
    """Sources of the class to recognize."""

    negative: dict[SourceName, Source] = Field(default_factory=dict)
    """Sources of everything else; a sample of the corpus itself works best."""

    model: Path | None = None
    """Folder of a classifier trained by an earlier preparation (`models/NAME` of its artifact), instead of the
    sources."""

    max_bytes: int = Field(default=20_000_000, ge=1)
    """Maximum bytes of training text per class."""

    @model_validator(mode="after")
    def _one_origin(self) -> "ClassifierConfig":
        if bool(self.model) == bool(self.positive or self.negative) or bool(self.positive) != bool(self.negative):
            raise ValueError(
                "give `positive` and `negative` sources to train on, or the `model` of an earlier preparation"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class QualityModelConfig(ClassifierConfig):
    """Drops documents that the classifier finds unlike the positive sources."""

    min_score: float = Field(default=0.5, gt=0, lt=1)
    """Documents below this probability of the positive class are dropped. The default, 0.5, drops what the classifier
    finds more likely negative."""

    languages: tuple[str, ...] = ()
    """Score only documents in these languages, since the classifier knows only those of its sources; empty for all."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ToxicityConfig:
    """Drops documents with many words from a list, or that a classifier finds toxic."""

    lexicon: dict[str, Path] = Field(default_factory=dict)
    """Language (`*` for any) to a UTF-8 file with one word or phrase per line. None is included; LDNOOBW publishes
    lists for 28 languages, used by C4, in the npm package naughty-words."""

    min_matches: int = Field(default=3, ge=1)
    """Matches from which a document counts as toxic..."""

    max_share: float = Field(default=0.01, ge=0, lt=1)
    """...if they also make up more than this share of its words. For C4's rule, which drops at the first match, set
    `{min_matches: 1, max_share: 0}`."""

    classifier: ClassifierConfig | None = None
    """Trained on toxic (positive) and other (negative) documents."""

    max_score: float = Field(default=0.9, gt=0, lt=1)
    """Documents above this probability of the toxic class are dropped."""

    @model_validator(mode="after")
    def _something_to_look_for(self) -> "ToxicityConfig":
        if not self.lexicon and self.classifier is None:
            raise ValueError("give a `lexicon`, a `classifier` or both, or leave toxicity out")
        return self
