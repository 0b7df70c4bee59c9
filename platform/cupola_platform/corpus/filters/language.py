"""Language identification: natural languages by py3langid, programs by suffix or appearance."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import PurePosixPath
from typing import Any

from cupola_platform.corpus.config import LanguageConfig
from cupola_platform.corpus.core.documents import Document, Drop, drop
from cupola_platform.errors import ConfigError

CODE = "code"

CODE_SUFFIXES = frozenset({".py", ".c", ".h", ".cc", ".cpp", ".hpp", ".rs", ".go", ".java", ".js", ".ts", ".sh", ".rb"})

PROBES = (0.1, 0.5, 0.9)
"""Relative positions to sample: the beginning alone may be a licence or a header."""

PROBE_CHARACTERS = 400

_CODE_LINE = re.compile(
    r"\s*(?:def |class |import |from \S+ import |return\b|elif |else:|except\b|raise |@\w|#include|public |private |"
    r"static |function |const |let |var |//|/\*|\*/|}|[\w.\[\]]+ ?[-+]?= ?\S)|.*[;{}]\s*$"
)


@dataclass(frozen=True)
class LanguageFilter:
    """Labels each document with its language, and drops those in unwanted languages."""

    config: LanguageConfig
    name: str = "language"

    def __call__(self, documents: Sequence[Document]) -> list[Document | Drop]:
        return [self._label(document) for document in documents]

    def _label(self, document: Document) -> Document | Drop:
        language, confidence = identify(document.text, document.path)
        if confidence < self.config.min_confidence:
            return drop(document, "language unclear", f"{language} at {confidence:.2f}")
        if self.config.keep and language not in self.config.keep:
            return drop(document, f"language {language}")
        return replace(document, language=language)


def identify(text: str, path: str = "") -> tuple[str, float]:
    """The language of a text (ISO 639 code, or `code`) and the confidence, from 0 to 1."""
    if PurePosixPath(path).suffix in CODE_SUFFIXES or looks_like_code(text):
        return CODE, 1.0
    sample = text
    if len(text) > len(PROBES) * PROBE_CHARACTERS:
        starts = (int(len(text) * place) for place in PROBES)
        sample = "\n".join(text[start : start + PROBE_CHARACTERS] for start in starts)
    language, confidence = identifier().classify(sample)
    return str(language), float(confidence)


def looks_like_code(text: str) -> bool:
    """Whether most lines look like statements, comments or braces. Text of fewer than five lines is never code."""
    lines = [line for line in text[:20_000].splitlines() if line.strip()][:200]
    return len(lines) >= 5 and sum(_CODE_LINE.match(line) is not None for line in lines) > 0.6 * len(lines)


def check_languages(key: str, codes: Iterable[str]) -> None:
    """Refuse codes that identification never returns.

    Raises:
        ConfigError: a code is unknown.
    """
    known = [*identifier().labels, CODE]
    for code in codes:
        if code not in known:
            raise ConfigError(
                f"{key}={code!r} is not a language that can be identified. Known: {' '.join(sorted(known))}."
            )


@cache
def identifier() -> Any:
    """py3langid with its model, loaded once."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
