"""The report of a corpus as one page that holds everything itself: pictures first, tables and examples below them."""

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from cupola_platform.corpus.report.pictures import Bar, bars, columns, grouped, power_of_two, short

SHOWN = 20
"""Languages, sources or reasons that a picture shows; the others are told together."""

_STYLE = """
:root{--ink:#1c1b1a;--quiet:#6b6660;--ground:#fdfcfa;--card:#f4efe9;--line:#e4dcd3}
@media(prefers-color-scheme:dark){:root{--ink:#eae6e1;--quiet:#a09a92;--ground:#1b1a19;--card:#262422;--line:#3a3633}}
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:var(--ink);background:var(--ground)}
h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:2.4rem 0 .3rem}h3{font-size:.95rem;margin:1.2rem 0 .2rem}p{margin:.2rem 0 .6rem}
small,.q{color:var(--quiet);fill:var(--quiet)}svg{display:block;width:100%;height:auto}svg text{fill:var(--ink)}svg text.q{fill:var(--quiet)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(10rem,1fr));gap:.7rem;margin:1rem 0}
.cards div{background:var(--card);border-radius:.5rem;padding:.6rem .8rem}.cards b{display:block;font-size:1.25rem;font-variant-numeric:tabular-nums}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(26rem,1fr));gap:0 2rem}.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.92em}td,th{padding:.25rem .7rem .25rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}td.share{text-align:center;min-width:4rem}
td:first-child{min-width:8rem}code{font-size:.85em;overflow-wrap:anywhere}details{margin:.3rem 0}summary{cursor:pointer}
.legend span{margin-right:1.2rem;color:var(--quiet)}.legend i{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.4em}
"""


def render(report: Mapping[str, Any]) -> str:
    """The page of a `report.json`."""
    parts = [
        "<h1>Corpus</h1>",
        _figures(report),
        _funnel(report["steps"]),
        _dropped(report["steps"]),
        _edited(report["steps"]),
        _sources(report),
        _languages(report),
        _lengths(report["lengths"]),
        *(_duplicates(step, found) for step, found in report["duplicates"].items() if found["clusters"]),
        _mixture(report["mixture"]),
        _compression(report["compression"]),
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Corpus</title><style>{_STYLE}</style>{''.join(parts)}</html>"
    )


def _figures(report: Mapping[str, Any]) -> str:
    first, last = report["steps"][0], report["steps"][-1]
    tokens = {split: sum(of[split]["tokens"] for of in report["sources"].values()) for split in ("train", "heldout")}
    cards = [
        (f"documents read, {size(first['bytes_in'])}", f"{first['documents_in']:,}"),
        (f"documents kept, {_share(last['documents_out'], first['documents_in'])}", f"{last['documents_out']:,}"),
        (f"of text kept, {_share(last['bytes_out'], first['bytes_in'])}", size(last["bytes_out"])),
        (f"tokens to train on, {short(tokens['heldout'])} held out", f"{tokens['train']:,}"),
        (f"bytes a token, {report['vocab_size']:,} rows", f"{report['bytes_per_token']:.2f}"),
    ]
    return f'<div class="cards">{"".join(f"<div><b>{value}</b><small>{name}</small></div>" for name, value in cards)}</div>'


def _funnel(steps: Sequence[Mapping[str, Any]]) -> str:
    pictures = []
    for what, told in (("documents", "{:,}".format), ("bytes", size)):
        rows = [
            Bar(
                step["step"],
                step[f"{what}_in"],
                step[f"{what}_out"],
                told(step[f"{what}_out"]) + _loss(step[f"{what}_in"], step[f"{what}_out"]),
                f"{step['step']}: {told(step[f'{what}_in'])} in, {told(step[f'{what}_out'])} out",
            )
            for step in steps
        ]
        drawn = bars(rows, about=f"{what} kept by each step", labels=140, notes=130, width=470)
        pictures.append(f"<div><h3>{what.capitalize()}</h3>{drawn}</div>")
    changed = ", ".join(f"{html.escape(step['step'])} {step['changed']:,}" for step in steps if step["changed"])
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
            f"{why['documents']:,}, {size(why['bytes'])}",
            f"{why['reason']} ({step})",
        )
        for step, why in reasons[:SHOWN]
    ]
    more = f"<small>{_more(len(reasons), 'reason')}</small>" if len(reasons) > SHOWN else ""
    tables = "".join(_examples(step) for step in steps if step["dropped"])
    return (
        f"<h2>What was dropped, and why</h2>{bars(rows, about='documents dropped by reason', labels=260)}{more}{tables}"
    )


def _examples(step: Mapping[str, Any]) -> str:
    rows = []
    for why in step["dropped"]:
        examples = "<br>".join(
            f"<code>{html.escape(of['document'])}</code> {html.escape(of['detail'])} "
            f'<span class="q">{html.escape(of["text"])}</span>'
            for of in why["examples"]
        )
        rows.append((why["reason"], f"{why['documents']:,}", size(why["bytes"]), examples))
    gone = step["documents_in"] - step["documents_out"]
    table = _table(("reason", "documents", "bytes", "examples"), rows, markup=3)
    return f"<details><summary>{html.escape(step['step'])}: {gone:,} documents</summary>{table}</details>"


def _edited(steps: Sequence[Mapping[str, Any]]) -> str:
    """What steps changed in documents that they kept."""
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
    return f"<h2>What was changed</h2>{bars(rows, about='changes by kind', labels=260)}" if rows else ""


def _sources(report: Mapping[str, Any]) -> str:
    steps, sources = report["steps"], report["sources"]
    rows = []
    for name, splits in islice(sorted(sources.items(), key=lambda of: -_tokens(of[1])), SHOWN):
        read, kept = steps[0]["sources"][name]["bytes_in"], sum(split["bytes"] for split in splits.values())
        note = f"{size(kept)} of {size(read)}, {short(_tokens(splits))} tokens"
        rows.append(Bar(name, max(read, kept), kept, note))
    table = _table(
        ("source", "split", "documents", "tokens", "bytes"),
        (
            (name, split, f"{of['documents']:,}", f"{of['tokens']:,}", size(of["bytes"]))
            for name, splits in sources.items()
            for split, of in splits.items()
        ),
    )
    more = f"<small>{_more(len(sources), 'source')}</small>" if len(sources) > SHOWN else ""
    drawn = bars(rows, about="bytes kept of each source", notes=260)
    return (
        f"<h2>Sources</h2>{drawn}<small>Dark: kept. Light: read. {more}</small>{_survival(steps, list(sources))}"
        f"<details><summary>Counts by source and split</summary>{table}</details>"
    )


def _survival(steps: Sequence[Mapping[str, Any]], sources: Sequence[str]) -> str:
    """What share of each source's documents each step kept: a table whose cells are the darker, the more is gone."""
    if len(sources) < 2:
        return ""
    head = "".join(f"<th>{html.escape(step['step'])}" for step in steps)
    rows = []
    for name in sources:
        cells = []
        for step in steps:
            of = step["sources"].get(name, {"documents_in": 0, "documents_out": 0})
            kept = of["documents_out"] / of["documents_in"] if of["documents_in"] else 1.0
            colour = f"background:rgb(181 80 45 / {(1 - kept) ** 0.5:.2f})"
            cells.append(f'<td class="share" style="{colour}">{_share(of["documents_out"], of["documents_in"])}')
        rows.append(f"<tr><td>{html.escape(name)}{''.join(cells)}")
    return f'<h3>Documents kept by each step</h3><div class="wide"><table><tr><th>source{head}{"".join(rows)}</table></div>'


def _languages(report: Mapping[str, Any]) -> str:
    languages = report["languages"]
    all_bytes = sum(of["bytes"] for of in languages.values()) or 1
    rows = [
        Bar(
            name,
            of["bytes"],
            of["bytes"],
            f"{size(of['bytes'])}, {_share(of['bytes'], all_bytes)}",
            f"{name}: {of['documents']:,} documents, {of['tokens']:,} tokens",
        )
        for name, of in islice(languages.items(), SHOWN)
    ]
    more = f"<small>{_more(len(languages), 'language')}</small>" if len(languages) > SHOWN else ""
    return f"<h2>Languages</h2>{bars(rows, about='bytes of each language', labels=110)}{more}"


def _lengths(lengths: Mapping[str, int]) -> str:
    first, last = (f(map(int, lengths)) for f in (min, max)) if lengths else (1, 0)
    rows, at = [], first
    while at <= last:
        rows.append((power_of_two(at), lengths.get(str(at), 0)))
        at *= 2
    drawn = columns(rows, about="documents by length")
    return f"<h2>Lengths</h2>{drawn}<small>Documents by their tokens: from the number below to the next one.</small>"


def _duplicates(step: str, found: Mapping[str, Any]) -> str:
    rows = [(f"{at} to {2 * int(at) - 1}", count) for at, count in found["sizes"].items()]
    largest = _table(
        ("kept of the largest clusters", "documents"),
        ((of["document"], f"{of['documents']:,}") for of in found["largest"]),
    )
    drawn = columns(rows, about=f"clusters of {step} by size", width=420, height=110)
    return (
        f"<h2>Duplicates: {html.escape(step)}</h2><p>{found['clusters']:,} clusters; {found['dropped']:,} documents "
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
    return f"<h2>Mixture</h2>{picture}<small>A source is drawn so many times as often as its tokens alone would have it.</small>"


def _compression(told: Mapping[str, Any]) -> str:
    if not told["languages"]:
        return ""
    series = list(next(iter(told["languages"].values())))
    rows = [
        (name, [(ratios[each], f"{ratios[each]:.2f}") for each in series])
        for name, ratios in islice(told["languages"].items(), SHOWN)
    ]
    names = ["this vocabulary" if name == "ours" else name for name in series]
    picture = grouped(rows, names, about="bytes a token by language", labels=110)
    return f"<h2>Compression</h2>{picture}<small>Bytes of text a token, of {html.escape(told['text'])} text.</small>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], markup: int = -1) -> str:
    """`markup`: the column that holds HTML."""

    def line(row: Sequence[str]) -> Iterator[str]:
        for i, value in enumerate(row):
            yield f"<td{_number(value) if i != markup else ''}>{value if i == markup else html.escape(value)}"

    titles = "".join(f"<th{_number('0') if name in ('documents', 'tokens', 'bytes') else ''}>{name}" for name in head)
    return f'<div class="wide"><table><tr>{titles}{"".join("<tr>" + "".join(line(row)) for row in rows)}</table></div>'


def _number(value: str) -> str:
    return ' class="n"' if value[:1].isdigit() else ""


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


def size(count: float) -> str:
    """`3.1 MB`."""
    for unit, of in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= of:
            return f"{count / of:.1f} {unit}"
    return f"{count:.0f} B"
