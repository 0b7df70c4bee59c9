"""The page of all reports: self-contained HTML."""

import html
from collections.abc import Iterable, Sequence

_STYLE = """
:root{--ink:#1c1b1a;--quiet:#6b6660;--ground:#fdfcfa;--card:#f4efe9;--line:#e4dcd3}
@media(prefers-color-scheme:dark){:root{--ink:#eae6e1;--quiet:#a09a92;--ground:#1b1a19;--card:#262422;--line:#3a3633}}
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}
body{color:var(--ink);background:var(--ground)}h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:2.4rem 0 .3rem}
h3{font-size:.95rem;margin:1.2rem 0 .2rem}p{margin:.2rem 0 .6rem}small,.q{color:var(--quiet)}
svg{display:block;max-width:100%;height:auto}svg text{fill:var(--ink);font-family:inherit!important}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(10rem,1fr));gap:.7rem;margin:1rem 0}
.cards div{background:var(--card);border-radius:.5rem;padding:.6rem .8rem}
.cards b{display:block;font-size:1.25rem;font-variant-numeric:tabular-nums}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(26rem,1fr));gap:0 2rem}.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.92em}
td,th{padding:.25rem .9rem .25rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}td.share{text-align:center;min-width:4rem}
td:first-child{min-width:8rem}code{font-size:.85em;overflow-wrap:anywhere}details{margin:.3rem 0}summary{cursor:pointer}
"""


class Html(str):
    """Text that is already HTML and is not escaped again."""

    __slots__ = ()


def escape(text: str) -> str:
    """Untrusted text escaped for HTML; `Html` is left unchanged."""
    return text if isinstance(text, Html) else html.escape(text)


def page(title: str, *parts: str) -> str:
    """A complete page. `title` is escaped here; the parts are HTML."""
    shown = html.escape(title)
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    return f"{head}<title>{shown}</title><style>{_STYLE}</style><h1>{shown}</h1>{''.join(parts)}</html>\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[str] = ()) -> Html:
    """A table; every cell is escaped unless it is `Html`.

    Args:
        numbers: the right-aligned columns.
    """
    kinds = [' class="n"' if name in numbers else "" for name in head]
    titles = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in zip(head, kinds, strict=True))
    lines = ("".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)) for row in rows)
    return Html(
        f'<div class="wide"><table><tr>{titles}</tr>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'
    )
