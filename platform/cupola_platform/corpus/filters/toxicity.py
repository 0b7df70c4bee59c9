"""Removal of toxic documents, by word lists and by a classifier trained on labelled documents.

A list finds words, not meanings: it also drops medical and legal text and quotations, and affects some groups' speech
more than others' (Dodge et al. 2021, section 5.3). So a document needs many matches to be dropped, unless the recipe
sets C4's rule.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from cupola_platform.corpus.config.classifiers import ANY_LANGUAGE, ToxicityConfig
from cupola_platform.corpus.core.documents import Document, Drop, drop
from cupola_platform.corpus.core.shingles import U64, hashed_words, ngrams
from cupola_platform.corpus.filters.classifier import loaded
from cupola_platform.errors import ConfigError

Lexicon = Mapping[int, U64]
"""Sorted hashes of phrases, by number of words."""


@dataclass(frozen=True)
class ToxicityFilter:
    """Drops documents with too many words of their language's list, or with a high score."""

    config: ToxicityConfig
    folder: Path
    """The classifier's folder, if there is one."""
    name: str = "toxicity"

    def __call__(self, documents: Sequence[Document]) -> list[Document | Drop]:
        texts = [document.text for document in documents]
        words = hashed_words(texts)
        scores = loaded(self.folder).scores(texts).tolist() if self.config.classifier else [0.0] * len(texts)
        return [
            self._judge(document, words.of(place), score)
            for place, (document, score) in enumerate(zip(documents, scores, strict=True))
        ]

    def _judge(self, document: Document, words: U64, score: float) -> Document | Drop:
        lists = [self.config.lexicon[key] for key in (document.language, ANY_LANGUAGE) if key in self.config.lexicon]
        matches = sum(count_matches(words, read_lexicon(path)) for path in lists)
        if matches >= self.config.min_matches and matches > self.config.max_share * len(words):
            return drop(document, "words of a toxic list", f"{matches} of {len(words)} words")
        if score > self.config.max_score:
            return drop(document, "high score of the toxicity model", f"{score:.3f}")
        return document


def count_matches(words: U64, lexicon: Lexicon) -> int:
    """The number of positions where a phrase of the list starts. In scripts without spaces each character is a word."""
    return sum(int(np.isin(ngrams(words, length), phrases).sum()) for length, phrases in lexicon.items())


@cache
def read_lexicon(path: Path) -> Lexicon:
    """The phrases of a file, one per line; lines that start with `#` are skipped.

    Raises:
        ConfigError: the file cannot be read or has no words.
    """
    try:
        lines = path.expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"toxicity.lexicon: {path} cannot be read ({error}). Give a UTF-8 file.") from error
    words = hashed_words([line for line in lines if not line.startswith("#")])
    phrases: dict[int, list[U64]] = {}
    for place in range(len(words.offsets) - 1):
        if len(of := words.of(place)):
            phrases.setdefault(len(of), []).append(ngrams(of, len(of)))
    if not phrases:
        raise ConfigError(f"toxicity.lexicon: {path} has no words. Give a file with one word or phrase per line.")
    return {length: np.unique(np.concatenate(of)) for length, of in phrases.items()}
