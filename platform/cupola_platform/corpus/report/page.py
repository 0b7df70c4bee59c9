"""The report of a corpus as one self-contained page: charts first, then tables and examples."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from cupola_platform.reports.charts import Bar, bars, columns, grouped
from cupola_platform.reports.page import Html, escape, page, table
from cupola_platform.reports.short_numbers import file_size, power_of_two, short

COUNTS = ("documents", "tokens", "bytes")
"""Numeric columns."""

SHOWN = 20
"""Maximum languages, sources or reasons in a chart, the largest first."""


def render(report: Mapping[str, Any]) -> str:
    """The page of a `report.json`."""
    return page(
        "Corpus",
        _figures(report),
        _funnel(report["steps"]),
        _dropped(report["steps"]),
        _edited(report["steps"]),
        _sources(report),
        _languages(report),
        _lengths(report["lengths"]),
        *(_duplicates(step, clusters) for step, clusters in report["duplicates"].items() if clusters["clusters"]),
        _mixture(report["mixture"]),
        _compression(report["compression"]),
    )


def _figures(report: Mapping[str, Any]) -> str:
    first, last = report["steps"][0], report["steps"][-1]
    tokens = {split: sum(of[split]["tokens"] for of in report["sources"].values()) for split in ("train", "heldout")}
    cards = [
        (f"documents read, {file_size(first['bytes_in'])}", f"{first['documents_in']:,}"),
        (f"documents kept, {_share(last['documents_out'], first['documents_in'])}", f"{last['documents_out']:,}"),
        (f"of text kept, {_share(last['bytes_out'], first['bytes_in'])}", file_size(last["bytes_out"])),
        (f"tokens to train on, {short(tokens['heldout'])} held out", f"{tokens['train']:,}"),
        (f"bytes per token, {report['vocab_size']:,} rows", f"{report['bytes_per_token']:.2f}"),
    ]
    shown = "".join(f"<div><b>{value}</b><small>{name}</small></div>" for name, value in cards)
    return f'<div class="cards">{shown}</div>'


def _funnel(steps: Sequence[Mapping[str, Any]]) -> str:
    pictures = []
    for what, spelt in (("documents", "{:,}".format), ("bytes", file_size)):
        rows = [
            Bar(
                step["step"],
                step[f"{what}_in"],
                step[f"{what}_out"],
                spelt(step[f"{what}_out"]) + _loss(step[f"{what}_in"], step[f"{what}_out"]),
                f"{step['step']}: {spelt(step[f'{what}_in'])} in, {spelt(step[f'{what}_out'])} out",
            )
            for step in steps
        ]
        drawn = bars(rows, about=f"{what} kept by each step", width=470)
        pictures.append(f"<div><h3>{what.capitalize()}</h3>{drawn}</div>")
    changed = ", ".join(f"{escape(step['step'])} {step['changed']:,}" for step in steps if step["changed"])
    return (
        f'<h2>What each step kept</h2><div class="two">{"".join(pictures)}</div>'
        "<small>Dark: kept. Light: dropped, or cut away, by the step."
        f"{f' Documents kept with another text: {changed}.' if changed else ''}</small>"
    )


def _dropped(steps: Sequence[Mapping[str, Any]]) -> str:
    reasons = [(step["step"], why) for step in steps for why in step["dropped"]]
    if not reasons:
        return "<h2>What was dropped, and why</h2><p>Nothing was dropped.</p>"
    reasons.sort(key=lambda of: -of[1]["documents"])
    rows = [
        Bar(
            why["reason"],
            why["documents"],
            why["documents"],
            f"{why['documents']:,}, {file_size(why['bytes'])}",
            f"{why['reason']} ({step})",
        )
        for step, why in reasons[:SHOWN]
    ]
    more = f"<small>{_more(len(reasons), 'reason')}</small>" if len(reasons) > SHOWN else ""
    tables = "".join(_examples(step) for step in steps if step["dropped"])
    return f"<h2>What was dropped, and why</h2>{bars(rows, about='documents dropped by reason')}{more}{tables}"


def _examples(step: Mapping[str, Any]) -> str:
    rows = []
    for why in step["dropped"]:
        examples = Html(
            "<br>".join(
                f"<code>{escape(of['document'])}</code> {escape(of['detail'])} "
                f'<span class="q">{escape(of["text"])}</span>'
                for of in why["examples"]
            )
        )
        rows.append((why["reason"], f"{why['documents']:,}", file_size(why["bytes"]), examples))
    gone = step["documents_in"] - step["documents_out"]
    reasons = table(("reason", "documents", "bytes", "examples"), rows, numbers=COUNTS)
    return f"<details><summary>{escape(step['step'])}: {gone:,} documents</summary>{reasons}</details>"


def _edited(steps: Sequence[Mapping[str, Any]]) -> str:
    """The edits in documents that were kept."""
    rows = [
        Bar(
            f"{step['step']}: {edit['kind']}",
            edit["count"],
            edit["count"],
            f"{edit['count']:,} in {edit['documents']:,} documents",
        )
        for step in steps
        for edit in step["edited"]
    ]
    return f"<h2>What was changed</h2>{bars(rows, about='changes by kind')}" if rows else ""


def _sources(report: Mapping[str, Any]) -> str:
    steps, sources = report["steps"], report["sources"]
    rows = []
    for name, splits in islice(sorted(sources.items(), key=lambda of: -_tokens(of[1])), SHOWN):
        read, kept = steps[0]["sources"][name]["bytes_in"], sum(split["bytes"] for split in splits.values())
        note = f"{file_size(kept)} of {file_size(read)}, {short(_tokens(splits))} tokens"
        rows.append(Bar(name, max(read, kept), kept, note))
    counts = table(
        ("source", "split", "documents", "tokens", "bytes"),
        (
            (name, split, f"{of['documents']:,}", f"{of['tokens']:,}", file_size(of["bytes"]))
            for name, splits in sources.items()
            for split, of in splits.items()
        ),
        numbers=COUNTS,
    )
    more = f"<small>{_more(len(sources), 'source')}</small>" if len(sources) > SHOWN else ""
    drawn = bars(rows, about="bytes kept of each source")
    return (
        f"<h2>Sources</h2>{drawn}<small>Dark: kept. Light: read. {more}</small>{_survival(steps, list(sources))}"
        f"<details><summary>Counts by source and split</summary>{counts}</details>"
    )


def _survival(steps: Sequence[Mapping[str, Any]], sources: Sequence[str]) -> str:
    """A table of the share of each source's documents that each step kept; the darker a cell, the more was dropped."""
    if len(sources) < 2:
        return ""
    head = "".join(f"<th>{escape(step['step'])}" for step in steps)
    rows = []
    for name in sources:
        cells = []
        for step in steps:
            of = step["sources"].get(name, {"documents_in": 0, "documents_out": 0})
            kept = of["documents_out"] / of["documents_in"] if of["documents_in"] else 1.0
            colour = f"background:rgb(181 80 45 / {(1 - kept) ** 0.5:.2f})"
            cells.append(f'<td class="share" style="{colour}">{_share(of["documents_out"], of["documents_in"])}')
        rows.append(f"<tr><td>{escape(name)}{''.join(cells)}")
    shown = f"<table><tr><th>source{head}{''.join(rows)}</table>"
    return f'<h3>Documents kept by each step</h3><div class="wide">{shown}</div>'


def _languages(report: Mapping[str, Any]) -> str:
    languages = report["languages"]
    all_bytes = sum(of["bytes"] for of in languages.values()) or 1
    rows = [
        Bar(
            name,
            of["bytes"],
            of["bytes"],
            f"{file_size(of['bytes'])}, {_share(of['bytes'], all_bytes)}",
            f"{name}: {of['documents']:,} documents, {of['tokens']:,} tokens",
        )
        for name, of in islice(languages.items(), SHOWN)
    ]
    more = f"<small>{_more(len(languages), 'language')}</small>" if len(languages) > SHOWN else ""
    return f"<h2>Languages</h2>{bars(rows, about='bytes of each language')}{more}"


def _lengths(lengths: Mapping[str, int]) -> str:
    first, last = (f(map(int, lengths)) for f in (min, max)) if lengths else (1, 0)
    rows, at = [], first
    while at <= last:
        rows.append((power_of_two(at), lengths.get(str(at), 0)))
        at *= 2
    drawn = columns(rows, about="documents by length", numbers=[short(count) for _, count in rows])
    return f"<h2>Lengths</h2>{drawn}<small>Documents by their tokens: from the number below to the next one.</small>"


def _duplicates(step: str, clusters: Mapping[str, Any]) -> str:
    rows = [(f"{at} to {2 * int(at) - 1}", count) for at, count in clusters["sizes"].items()]
    largest = table(
        ("kept of the largest clusters", "documents"),
        ((of["document"], f"{of['documents']:,}") for of in clusters["largest"]),
        numbers=COUNTS,
    )
    numbers = [short(count) for _, count in rows]
    drawn = columns(rows, about=f"clusters of {step} by size", numbers=numbers, width=420)
    return (
        f"<h2>Duplicates: {escape(step)}</h2><p>{clusters['clusters']:,} clusters; {clusters['dropped']:,} documents "
        f'dropped, one of each cluster kept.</p><div class="two"><div>{drawn}<small>Clusters by the documents in them.'
        f"</small></div><div>{largest}</div></div>"
    )


def _mixture(mixture: Mapping[str, Mapping[str, float]]) -> str:
    rows = []
    for name, of in islice(sorted(mixture.items(), key=lambda of: -of[1]["share_of_samples"]), SHOWN):
        times = of["share_of_samples"] / of["share_of_tokens"] if of["share_of_tokens"] else 0.0
        drawn = (of["share_of_samples"], f"{of['share_of_samples']:.1%}, {times:.3g} times")
        rows.append((name, ((of["share_of_tokens"], f"{of['share_of_tokens']:.1%}"), drawn)))
    picture = grouped(rows, ("share of the tokens", "share of the samples"), about="mixture of the sources")
    legend = "Times: how often a source is sampled, compared with its share of the tokens."
    return f"<h2>Mixture</h2>{picture}<small>{legend}</small>"


def _compression(compression: Mapping[str, Any]) -> str:
    if not compression["languages"]:
        return ""
    series = list(next(iter(compression["languages"].values())))
    rows = [
        (name, [(ratios[each], f"{ratios[each]:.2f}") for each in series])
        for name, ratios in islice(compression["languages"].items(), SHOWN)
    ]
    names = ["this vocabulary" if name == "ours" else name for name in series]
    picture = grouped(rows, names, about="bytes per token by language")
    return (
        f"<h2>Compression</h2>{picture}<small>Bytes of text per token, of {escape(compression['text'])} text.</small>"
    )


def _tokens(splits: Mapping[str, Mapping[str, int]]) -> int:
    return sum(split["tokens"] for split in splits.values())


def _share(part: float, whole: float) -> str:
    share = 100 * part / whole if whole else 100.0
    if 0 < share < 0.05:
        return "<0.1%"
    return f"{share:.1f}%" if 0 < share < 99.95 else f"{share:.0f}%"


def _loss(before: float, after: float) -> str:
    return f"  −{_share(before - after, before)}" if after < before else ""


def _more(count: int, what: str) -> str:
    return f"The {SHOWN} biggest of {count:,} {what}s."
