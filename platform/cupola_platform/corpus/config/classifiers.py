"""What classifiers and word lists are told. Light to import: recipes embed it."""

from pathlib import Path

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from cupola_platform.corpus.config.sources import Source, SourceName
from cupola_platform.strict import STRICT

ANY_LANGUAGE = "*"
"""Key of a list of words that is for documents of any language."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClassifierConfig:
    """A linear classifier of hashed words and word pairs, learnt from labelled sources or learnt before."""

    positive: dict[SourceName, Source] = Field(default_factory=dict)
    """Documents of what is looked for."""

    negative: dict[SourceName, Source] = Field(default_factory=dict)
    """Documents of the rest; best is a sample of the corpus itself."""

    model: Path | None = None
    """Folder of a classifier that an earlier preparation learnt (`models/NAME` of its artifact), in place of the sources."""

    max_bytes: int = Field(default=20_000_000, ge=1)
    """Text of each class to learn from, at most."""

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
    """Probability of the positive class below which a document is dropped; 0.5 where the classifier is undecided."""

    languages: tuple[str, ...] = ()
    """Judge documents of these languages only (it knows no others than its sources'); empty for all."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ToxicityConfig:
    """Documents with many words of a list, or which a classifier finds toxic, are dropped."""

    lexicon: dict[str, Path] = Field(default_factory=dict)
    """Language (`*` for any) to a file with a word or phrase a line, in UTF-8. None is shipped: published ones are LDNOOBW's
    (28 languages; C4 used it), in npm's package naughty-words."""

    min_matches: int = Field(default=3, ge=1)
    """Matches from which a document is toxic..."""

    max_share: float = Field(default=0.01, ge=0, lt=1)
    """...if they are also more than this share of its words. C4 drops at the first match: `{min_matches: 1, max_share: 0}`."""

    classifier: ClassifierConfig | None = None
    """Learnt from toxic (positive) and other (negative) documents."""

    max_score: float = Field(default=0.9, gt=0, lt=1)
    """Probability of the toxic class above which a document is dropped."""

    @model_validator(mode="after")
    def _something_to_look_for(self) -> "ToxicityConfig":
        if not self.lexicon and self.classifier is None:
            raise ValueError("give a `lexicon`, a `classifier` or both; else leave toxicity out")
        return self
