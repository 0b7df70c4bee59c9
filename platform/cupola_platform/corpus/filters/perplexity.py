"""Drops documents that a model finds too surprising or too predictable, by bounds and by percentiles per language (as
in CCNet: Wenzek et al. 2020, section 3.3).

The model runs in another process, because this package does not import torch. That process reads a JSON list of texts
per line and writes a JSON list of their bits per byte; each worker starts one.
"""

import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from pyarrow import parquet

from cupola_platform.corpus.config.steps import PerplexityConfig
from cupola_platform.corpus.core.document_files import documents_file
from cupola_platform.corpus.core.documents import Document, Drop, drop
from cupola_platform.errors import StageFailedError
from cupola_platform.launch import tether

DECIMALS = 3
"""Decimals of bits per byte: models are no more precise, and it limits the distinct values to count."""


@dataclass(frozen=True)
class PerplexityFilter:
    """Drops documents whose bits per byte are out of bounds."""

    config: PerplexityConfig
    command: tuple[str, ...]
    """Command of the process that scores texts."""
    name: str = "perplexity"

    def __call__(self, documents: Sequence[Document]) -> list[Document | Drop]:
        wanted = [not self.config.languages or document.language in self.config.languages for document in documents]
        texts = [document.text for document, judged in zip(documents, wanted, strict=True) if judged]
        bits = iter(scorer(self.command)(texts) if texts else [])
        return [
            self._judge(document, next(bits)) if judged else document
            for document, judged in zip(documents, wanted, strict=True)
        ]

    def _judge(self, document: Document, bits: float) -> Document | Drop:
        bits = round(bits, DECIMALS)
        if bits > self.config.max_bits_per_byte:
            return drop(document, "too surprising", f"{bits:.2f} bits a byte")
        if bits < self.config.min_bits_per_byte:
            return drop(document, "too predictable", f"{bits:.2f} bits a byte")
        return replace(document, bits_per_byte=bits)


@dataclass(frozen=True)
class PercentileFilter:
    """Drops documents that are more surprising than most of their language."""

    cutoffs: Mapping[str, float]
    """Bits per byte by language, from `cutoffs_of`."""
    name: str = "perplexity by language"

    def __call__(self, documents: Sequence[Document]) -> list[Document | Drop]:
        return [self._judge(document) for document in documents]

    def _judge(self, document: Document) -> Document | Drop:
        bits = document.bits_per_byte
        if bits is None or bits <= self.cutoffs[document.language]:
            return document
        language = document.language or "unknown"
        return drop(
            document, f"surprising for {language}", f"{bits:.2f} of {self.cutoffs[document.language]:.2f} bits a byte"
        )


def cutoffs_of(folder: Path, tasks: int, percentile: float) -> dict[str, float]:
    """For each language, the bits per byte that `percentile` percent of the documents in `folder` do not exceed.

    It counts documents by rounded value, so memory stays constant.
    """
    counts: dict[str, Counter[float]] = defaultdict(Counter)
    for task in range(tasks):
        scored = parquet.read_table(documents_file(folder, task), columns=["language", "bits_per_byte"]).drop_null()
        alike = scored.group_by(["language", "bits_per_byte"]).aggregate([([], "count_all")])
        for language, bits, count in zip(*(column.to_pylist() for column in alike.columns), strict=True):
            counts[language][bits] += count
    return {language: _percentile(of, percentile) for language, of in sorted(counts.items())}


def _percentile(counts: Counter[float], percentile: float) -> float:
    needed = counts.total() * percentile / 100
    for bits in sorted(counts):
        needed -= counts[bits]
        if needed <= 0:
            break
    return bits


class Scorer:
    """A process that scores texts until this process ends."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, tether.__file__, str(os.getpid()), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """Bits per byte of each text.

        Raises:
            StageFailedError: the process ended; its output is in the log.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(texts) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self._process.stdout.readline()
        if not answer:
            raise StageFailedError(
                f"perplexity: the process that scores texts ended with exit status {self._process.wait()}. "
                "Read its output in the preparation's log."
            )
        scores: list[float] = json.loads(answer)
        return scores


@cache
def scorer(command: tuple[str, ...]) -> Scorer:
    """The scorer of this worker, started on first use."""
    return Scorer(command)
