"""The account of a preparation: what each step kept and dropped, and the result. It has sums and a few examples only,
so its size does not depend on the corpus.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cupola_platform.corpus.config.steps import PersonalDataConfig
from cupola_platform.corpus.core.documents import Counts, Tally
from cupola_platform.corpus.filters.personal_data import mask
from cupola_platform.corpus.report.page import render
from cupola_platform.corpus.tokenizer.compression import compression
from cupola_platform.corpus.tokenizer.tokenizing import Written


@dataclass(frozen=True, slots=True)
class Account:
    """The facts of a preparation once its shards are written."""

    steps: Sequence[Mapping[str, Tally]]
    """The tallies of each step by source, in order."""

    written: Written
    vocab_size: int
    weights: Mapping[str, float] = field(default_factory=dict)
    """The sources' sampling weights."""

    duplicates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Results of `cluster_sizes`, by step."""

    compare: Sequence[str] = ()
    """Vocabularies to compare with, as in `compression`."""

    beside: Mapping[str, object] = field(default_factory=dict)
    """Further entries of `report.json`."""

    personal_data: PersonalDataConfig | None = None
    """Also masked in examples, because documents may be dropped before the masking step."""


def write_report(to: Path, account: Account) -> None:
    """Write `report.json` and `report.html` into `to`, the folder of the tokens artifact. Neither contains times.

    Raises:
        ConfigError: a vocabulary to compare with cannot be read.
    """
    written = account.written
    report = {
        "steps": [_step(of_sources, account.personal_data) for of_sources in account.steps],
        "sources": {name: {split: asdict(count) for split, count in of.items()} for name, of in written.splits.items()},
        "languages": _biggest(written.languages),
        "languages_of_sources": {name: _biggest(of) for name, of in written.languages_of_sources.items()},
        "lengths": {str(1 << power): written.lengths[power] for power in sorted(written.lengths)},
        "duplicates": dict(account.duplicates),
        "mixture": _mixture(written, account.weights),
        "compression": _compression(to, written, account.compare),
        "vocab_size": account.vocab_size,
        "bytes_per_token": _bytes_per_token(sum_counts(written.languages.values())),
        **account.beside,
    }
    (to / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False), encoding="utf-8")
    (to / "report.html").write_text(render(report), encoding="utf-8")


def _step(of_sources: Mapping[str, Tally], personal_data: PersonalDataConfig | None) -> dict[str, object]:
    def shown(text: str) -> str:
        return mask(text, personal_data.kinds)[0] if personal_data else text

    total = Tally.total(of_sources.values())
    summary = asdict(total)
    del summary["seconds"], summary["lost"], summary["edits"]
    losses = sorted(total.lost.items(), key=lambda item: -item[1].documents)
    dropped = [
        {
            "reason": reason,
            "documents": loss.documents,
            "bytes": loss.bytes,
            "examples": [
                {"document": name, "detail": shown(detail), "text": shown(text)} for name, detail, text in loss.examples
            ],
        }
        for reason, loss in losses
    ]
    edited = [
        {
            "kind": kind,
            "documents": edit.documents,
            "count": edit.count,
            "examples": [{"document": name, "detail": detail} for name, detail in edit.examples],
        }
        for kind, edit in sorted(total.edits.items(), key=lambda item: -item[1].count)
    ]
    sizes = ("documents_in", "documents_out", "bytes_in", "bytes_out")
    sources = {name: {size: getattr(tally, size) for size in sizes} for name, tally in of_sources.items()}
    return {**summary, "sources": sources, "dropped": dropped, "edited": edited}


def _biggest(languages: Mapping[str, Counts]) -> dict[str, dict[str, int]]:
    order = sorted(languages.items(), key=lambda item: (-item[1].bytes, item[0]))
    return {language: asdict(of) for language, of in order}


def _mixture(written: Written, weights: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Each source's share of the training tokens and of the samples."""
    tokens = {name: of["train"].tokens for name, of in written.splits.items()}
    asked = dict(weights) if set(weights) == set(tokens) else {name: float(count) for name, count in tokens.items()}
    all_tokens, all_asked = max(sum(tokens.values()), 1), sum(asked.values()) or 1.0
    return {
        name: {"tokens": count, "share_of_tokens": count / all_tokens, "share_of_samples": asked[name] / all_asked}
        for name, count in tokens.items()
    }


def _compression(to: Path, written: Written, compare: Sequence[str]) -> dict[str, Any]:
    """Bytes per token by language: over all text, or over held-out text if other vocabularies are compared."""
    if compare:
        rows = [asdict(row) for row in compression(to, compare)]
        return {"text": "held-out", "languages": {row["language"]: row["ratios"] for row in rows}}
    biggest = sorted(written.languages.items(), key=lambda item: (-item[1].bytes, item[0]))
    return {"text": "all", "languages": {name: {"ours": _bytes_per_token(of)} for name, of in biggest}}


def sum_counts(counts: Any) -> Counts:
    """The sum of all counts."""
    total = Counts()
    for of in counts:
        total.documents += of.documents
        total.tokens += of.tokens
        total.bytes += of.bytes
    return total


def _bytes_per_token(of: Counts) -> float:
    return of.bytes / max(of.tokens, 1)
