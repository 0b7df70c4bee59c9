"""Unicode repair: NFC, line feeds only, no control characters, mojibake undone."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cupola_platform.corpus.core.documents import Document, Drop, drop

_CONTROL = re.compile("\x1b\\[[0-9;]*m|[\x01-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff\u2060\u00ad]")
_NEVER = re.compile("[\ufffd\ue000-\uf8ff\ufdd0-\ufdef\ufffe\uffff\x80-\x9f]")

_BYTES = {bytes([byte]).decode("cp1252", "ignore") or chr(byte): byte for byte in range(0x80, 0x100)}
"""Windows-1252 as decoded by browsers: its five undefined bytes are C1 controls."""

_REST = re.escape("".join(character for character, byte in _BYTES.items() if byte < 0xC0))
_MOJIBAKE = re.compile(
    f"[\u00e0-\u00ef][{_REST}]{{2}}|[\u00f0-\u00f4][{_REST}]{{3}}"
    f"|(?:[\u00c2-\u00df][{_REST}]){{3,}}"
    "|[\u00c2\u00c3](?![\u2010-\u2026\u2039\u203a\u00ab\u00bb])"  # a capital before a closing quote is valid: IRMÃ”
    f"[{_REST}]"
)

MAX_UNREADABLE = 0.005
"""Share of replacement characters, private use and C1 controls above which a text is dropped."""


@dataclass(frozen=True)
class UnicodeRepair:
    """Repairs each text, and drops those that are garbled beyond repair."""

    name: str = "unicode repair"

    def __call__(self, documents: Sequence[Document]) -> list[Document | Drop]:
        return [self._repair(document) for document in documents]

    def _repair(self, document: Document) -> Document | Drop:
        text = repair(document.text)
        unreadable = 0 if text.isascii() else len(_NEVER.findall(text))
        if unreadable > MAX_UNREADABLE * len(text):
            return drop(document, "unreadable characters", f"{unreadable:,} of {len(text):,} characters")
        if not text.strip():
            return drop(document, "nothing but control characters")
        if text == document.text:
            return document
        return replace(document, text=text, size=len(text.encode()))


def repair(text: str) -> str:
    """The text in NFC with line feeds only, without control and invisible formatting characters, and with mojibake
    undone.

    Mojibake here means UTF-8 decoded as Windows-1252 (`Ã©` for `é`), in sequences that do not occur in natural text.
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _CONTROL.sub("", text)
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", _MOJIBAKE.sub(_undo, text))


def _undo(match: re.Match[str]) -> str:
    try:
        return bytes(map(_BYTES.__getitem__, match[0])).decode()
    except UnicodeDecodeError:
        return match[0]
