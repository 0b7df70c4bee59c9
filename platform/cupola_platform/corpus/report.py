"""The funnel: what each step dropped and why, as JSON for programs and one page for people."""

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from cupola_platform.corpus.documents import Counts, Tally
from cupola_platform.corpus.tokenizing import Written

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c1b1a;background:#fdfcfa}
h1{font-size:1.5rem}h2{font-size:1.05rem;margin:2rem 0 .4rem}p{margin:.2rem 0}small,.q{color:#6b6660}
table{border-collapse:collapse;width:100%}td,th{padding:.2rem .6rem .2rem 0;text-align:left;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
svg{display:block;width:100%;height:auto}code{font-size:.85em;overflow-wrap:anywhere}
@media(prefers-color-scheme:dark){body{color:#eae6e1;background:#1b1a19}svg text{fill:#eae6e1}small,.q{color:#a09a92}}
"""


def write_report(
    to: Path,
    tallies: Sequence[Tally],
    written: Written,
    vocab_size: int,
    beside: Mapping[str, object],
) -> None:
    """Write `report.json`, with what is `beside` the funnel, and `report.html` into `to`. Neither holds a time."""
    counts = written.splits
    report = {
        "steps": [_step(tally) for tally in tallies],
        "sources": {name: {split: asdict(count) for split, count in of.items()} for name, of in counts.items()},
        "languages": _languages(written),
        "vocab_size": vocab_size,
        "bytes_per_token": _ratio(counts),
        **beside,
    }
    (to / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False), encoding="utf-8")
    (to / "report.html").write_text(render(tallies, counts, _languages(written)), encoding="utf-8")


def _step(tally: Tally) -> dict[str, object]:
    step = asdict(tally)
    del step["seconds"], step["lost"], step["edits"]
    losses = sorted(tally.lost.items(), key=lambda item: -item[1].documents)
    dropped = [
        {
            "reason": reason,
            "documents": loss.documents,
            "bytes": loss.bytes,
            "examples": [{"document": name, "detail": detail} for name, detail in loss.examples],
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
        for kind, edit in sorted(tally.edits.items(), key=lambda item: -item[1].count)
    ]
    return {**step, "dropped": dropped, "edited": edited}


def _languages(written: Written) -> dict[str, dict[str, int]]:
    biggest = sorted(written.languages.items(), key=lambda item: (-item[1].bytes, item[0]))
    return {language: {"documents": of.documents, "bytes": of.bytes} for language, of in biggest}


def _ratio(counts: Mapping[str, Mapping[str, Counts]]) -> float:
    splits = [count for of in counts.values() for count in of.values()]
    return sum(count.bytes for count in splits) / max(sum(count.tokens for count in splits), 1)


def render(
    tallies: Sequence[Tally], counts: Mapping[str, Mapping[str, Counts]], languages: Mapping[str, Mapping[str, int]]
) -> str:
    """One page without anything from elsewhere: the funnel as bars, then each step's reasons with examples."""
    first, last = tallies[0], tallies[-1]
    body = [
        "<h1>Corpus</h1>",
        f"<p>{first.documents_in:,} documents read, {last.documents_out:,} kept.</p>",
        f"<p>{_mb(first.bytes_in)} to {_mb(last.bytes_out)}, {_ratio(counts):.2f} bytes a token.</p>",
        _funnel(tallies),
        "<h2>What is left</h2>",
        _table(("source", "split", "documents", "tokens", "bytes"), _split_rows(counts)),
        _table(
            ("language", "documents", "bytes"),
            ((name, f"{of['documents']:,}", _mb(of["bytes"])) for name, of in languages.items()),
        ),
        *(_reasons(tally) for tally in tallies if tally.lost),
        *(_edits(tally) for tally in tallies if tally.edits),
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Corpus</title><style>{_STYLE}</style>{''.join(body)}</html>"
    )


def _funnel(tallies: Sequence[Tally]) -> str:
    widest = max(tallies[0].bytes_in, 1)
    height = 30
    rows = []
    for i, tally in enumerate(tallies):
        before, after = 560 * tally.bytes_in / widest, 560 * tally.bytes_out / widest
        y = i * height
        rows.append(
            f'<text x="0" y="{y + 18}">{html.escape(tally.step)}</text>'
            f'<rect x="150" y="{y + 4}" width="{before:.1f}" height="20" fill="#e2b59a"/>'
            f'<rect x="150" y="{y + 4}" width="{after:.1f}" height="20" fill="#b5502d"/>'
            f'<text x="{160 + before:.1f}" y="{y + 18}">{_mb(tally.bytes_out)}, {tally.documents_out:,}</text>'
        )
    return (
        f'<svg viewBox="0 0 900 {height * len(tallies)}" font-size="13" role="img" '
        f'aria-label="bytes and documents kept by each step">{"".join(rows)}</svg>'
        "<small>Dark: kept. Light: dropped by the step. Megabytes, then documents.</small>"
    )


def _split_rows(counts: Mapping[str, Mapping[str, Counts]]) -> Iterator[tuple[str, ...]]:
    for name, splits in counts.items():
        for split, count in splits.items():
            yield name, split, f"{count.documents:,}", f"{count.tokens:,}", _mb(count.bytes)


def _reasons(tally: Tally) -> str:
    rows = []
    for reason, loss in sorted(tally.lost.items(), key=lambda item: -item[1].documents):
        examples = "<br>".join(
            f'<code>{html.escape(name)}</code> <span class="q">{html.escape(detail)}</span>'
            for name, detail in loss.examples
        )
        rows.append(
            f'<tr><td>{html.escape(reason)}<td class="n">{loss.documents:,}<td class="n">{_mb(loss.bytes)}'
            f"<td>{examples}"
        )
    return (
        f"<h2>Dropped by {html.escape(tally.step)}</h2><table><tr><th>reason<th class='n'>documents<th class='n'>bytes"
        f"<th>examples{''.join(rows)}</table>"
    )


def _edits(tally: Tally) -> str:
    rows = (
        (
            kind,
            f"{edit.count:,}",
            f"{edit.documents:,}",
            "; ".join(filter(None, (detail for _, detail in edit.examples))),
        )
        for kind, edit in sorted(tally.edits.items(), key=lambda item: -item[1].count)
    )
    return f"<h2>Changed by {html.escape(tally.step)}</h2>{_table(('kind', 'times', 'documents', 'examples'), rows)}"


def _table(head: Sequence[str], rows: Iterator[tuple[str, ...]]) -> str:
    cells = "".join("<tr>" + "".join(f"<td{_class(value)}>{html.escape(value)}" for value in row) for row in rows)
    return f"<table><tr>{''.join(f'<th>{name}' for name in head)}{cells}</table>"


def _class(value: str) -> str:
    return ' class="n"' if value[:1].isdigit() else ""


def _mb(size: int) -> str:
    return f"{size / 1e6:,.2f} MB"
