"""Documents that a model finds too surprising or too predictable, dropped (as CCNet does it: Wenzek et al. 2020, section 3.3).

The model lives in another process: this package knows no torch. A command reads a JSON list of texts a line and answers with
a JSON list of their bits per byte; each worker starts it once.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from cupola_platform.corpus.documents import Document, Drop, drop
from cupola_platform.corpus.step_config import PerplexityConfig
from cupola_platform.errors import StageFailedError
from cupola_platform.launch import tether


@dataclass(frozen=True)
class PerplexityFilter:
    """Drop documents whose bits per byte are out of bounds."""

    config: PerplexityConfig
    command: tuple[str, ...]
    """What scores texts."""
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
        if bits > self.config.max_bits_per_byte:
            return drop(document, "too surprising", f"{bits:.2f} bits a byte")
        if bits < self.config.min_bits_per_byte:
            return drop(document, "too predictable", f"{bits:.2f} bits a byte")
        return document


class Scorer:
    """A process that scores texts for as long as this one lives."""

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
            StageFailedError: the process ended; what it said is in the log.
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
                f"perplexity: the process that scores texts ended with exit status {self._process.wait()}. Its last words are "
                "in the preparation's log."
            )
        scores: list[float] = json.loads(answer)
        return scores


@cache
def scorer(command: tuple[str, ...]) -> Scorer:
    """Started once by a worker, for all its documents."""
    return Scorer(command)
