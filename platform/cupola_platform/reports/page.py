"""A page that needs nothing from elsewhere: numbers and pictures of one thing, in the house's look."""

import html

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#1c1b1a;background:#fdfcfa}
h1{font-size:1.5rem}h2{font-size:1.05rem;margin:2rem 0 .4rem}small{color:#6b6660}svg{display:block;width:100%;height:auto}
td,th{padding:.2rem .9rem .2rem 0;text-align:left;font-variant-numeric:tabular-nums}td.n,th.n{text-align:right}
@media(prefers-color-scheme:dark){body{color:#eae6e1;background:#1b1a19}svg text{fill:#eae6e1}small{color:#a09a92}}
"""


def page(title: str, *parts: str) -> str:
    """One HTML page. `title` is escaped here, the parts are HTML."""
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    return f"{head}<title>{html.escape(title)}</title><style>{_STYLE}</style><h1>{html.escape(title)}</h1>{''.join(parts)}</html>"
