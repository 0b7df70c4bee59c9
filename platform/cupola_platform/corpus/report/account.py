"""The account of a preparation: what each step kept and dropped, and what there is at the end. Sums only, never a
document but a few examples, so it stays small however big the corpus is.
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
    """What is known of a preparation when its shards are written."""

    steps: Sequence[Mapping[str, Tally]]
    """The funnel, in order: what each step did with each source."""

    written: Written
    vocab_size: int
    weights: Mapping[str, float] = field(default_factory=dict)
    """Sampling weights that the sources ask for."""

    duplicates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By step: what `cluster_sizes` says."""

    compare: Sequence[str] = ()
    """Other vocabularies, as `compression` takes them."""

    beside: Mapping[str, object] = field(default_factory=dict)
    """Further entries of `report.json`."""

    personal_data: PersonalDataConfig | None = None
    """Masked in examples, too: documents may be dropped before the step that masks them."""


def write_report(to: Path, account: Account) -> None:
    """Write `report.json` and `report.html` into `to`, where the tokens artifact lies. Neither holds a time.

    Raises:
        ConfigError: a vocabulary to compare with that cannot be read.
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
    """Each source's share of the training tokens, and of the samples that are drawn from them."""
    tokens = {name: of["train"].tokens for name, of in written.splits.items()}
    asked = dict(weights) if set(weights) == set(tokens) else {name: float(count) for name, count in tokens.items()}
    all_tokens, all_asked = max(sum(tokens.values()), 1), sum(asked.values()) or 1.0
    return {
        name: {"tokens": count, "share_of_tokens": count / all_tokens, "share_of_samples": asked[name] / all_asked}
        for name, count in tokens.items()
    }


def _compression(to: Path, written: Written, compare: Sequence[str]) -> dict[str, Any]:
    """Bytes a token by language: of all text, or of held-out text where other vocabularies are asked, too."""
    if compare:
        rows = [asdict(row) for row in compression(to, compare)]
        return {"text": "held-out", "languages": {row["language"]: row["ratios"] for row in rows}}
    biggest = sorted(written.languages.items(), key=lambda item: (-item[1].bytes, item[0]))
    return {"text": "all", "languages": {name: {"ours": _bytes_per_token(of)} for name, of in biggest}}


def sum_counts(counts: Any) -> Counts:
    """All of them together."""
    total = Counts()
    for of in counts:
        total.documents += of.documents
        total.tokens += of.tokens
        total.bytes += of.bytes
    return total


def _bytes_per_token(of: Counts) -> float:
    return of.bytes / max(of.tokens, 1)
