"""The readable text of HTML pages and man pages (roff)."""

import html
import re

_HIDDEN = re.compile(r"<!--.*?-->|<(script|style|head|nav|svg|template)\b.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
_BLOCK = re.compile(
    r"</?(?:p|div|li|h[1-6]|br|tr|pre|dt|dd|table|ul|ol|section|article|blockquote)\b[^>]*>", re.IGNORECASE
)
_TAG = re.compile(r"</?[a-zA-Z!][^>]*>")


def html_to_text(markup: str) -> str:
    """All readable text of a page: block elements end lines; scripts, styles, heads and navigation are skipped."""
    return _tidy(html.unescape(_TAG.sub("", _BLOCK.sub("\n", _HIDDEN.sub("", markup)))))


def main_text(markup: str) -> str:
    """A page's main text without menus and footers (trafilatura); all text if none is found."""
    import trafilatura

    text = trafilatura.extract(markup, include_comments=False, favor_recall=True)
    return text or html_to_text(markup)


_COMMENT = re.compile(r"^[.'] *\\\".*\n|\\\".*$", re.MULTILINE)
_DEFINITION = re.compile(r"^[.']\s*(?:de|ig|am)\b.*?^\.(?:\.| *$)\n", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^[.'] *(?:SH|SS|Sh|Ss) +\"?(.*?)\"? *$", re.MULTILINE)
_BREAK = re.compile(r"^[.'] *(?:PP|P|LP|TP|IP|HP|sp|br|Pp|It|RS|RE|nf|fi|EX|EE|Bd|Ed|Bl|El)\b.*$", re.MULTILINE)
_FONT = re.compile(
    r"^[.'] *(?:BR|RB|BI|IB|IR|RI|B|I|SM|SB|Nm|Fl|Ar|Op|Xr|Em|Sy|Dv|Fn|Pa|Cm|Li|Nd) +(.*)$", re.MULTILINE
)
_REQUEST = re.compile(r"^[.'].*$\n?", re.MULTILINE)
_INLINE = re.compile(r"\\f(?:\[[^\]]*\]|\(..|.)|\\s[-+]?\d|\\[&%|^)/,]|\\m\[[^\]]*\]")
_SIGNS = {
    "\\-": "-", "\\e": "\\", "\\ ": " ", "\\~": " ", "\\0": " ", "\\(aq": "'", "\\(dq": '"', "\\(co": "©", "\\(bu": "•",
    "\\(em": "—", "\\(en": "–", "\\(lq": "“", "\\(rq": "”", "\\(oq": "‘", "\\(cq": "’", "\\(ha": "^", "\\(ti": "~",
    "\\*(lq": "“", "\\*(rq": "”", "\\*(L\"": "“", "\\*(R\"": "”", "\\[u00E9]": "é",
}  # fmt: skip
_SIGN = re.compile("|".join(map(re.escape, sorted(_SIGNS, key=len, reverse=True))))
_POINT = re.compile(r"\\\[u([0-9A-Fa-f]{4,6})\]")


def man_to_text(source: str) -> str:
    """The text of a man or mdoc page: headings and paragraphs on their own lines, without fonts and requests."""
    text = _DEFINITION.sub("", _COMMENT.sub("", source))
    text = _BREAK.sub("", _HEADING.sub(r"\n\1", text))
    text = _FONT.sub(lambda match: match[1].replace('"', ""), text)
    text = _REQUEST.sub("", text)
    text = _POINT.sub(lambda match: chr(int(match[1], 16)), _INLINE.sub("", text))
    return _tidy(_SIGN.sub(lambda match: _SIGNS[match[0]], text))


def _tidy(text: str) -> str:
    return re.sub(r"\n\s*\n+", "\n\n", re.sub(r"[ \t\r]+\n", "\n", text)).strip()
