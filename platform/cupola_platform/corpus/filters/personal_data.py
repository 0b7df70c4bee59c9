"""Masking of personal data. Checksums are verified where they exist, so that version numbers and product codes stay."""

import ipaddress
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date

from cupola_platform.corpus.config.steps import PersonalDataConfig, PersonalKind
from cupola_platform.corpus.core.documents import Document, Edited
from cupola_platform.corpus.filters.language import CODE

Span = tuple[int, int]

# All boundaries are ASCII, because a number may directly follow a Chinese word.

_AT = re.compile(r"@((?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24})(?![\w-]|\.\w)", re.ASCII)
_LOCAL = re.compile(r"[A-Za-z0-9](?:[\w.%+-]{0,62}[\w+-])?\Z", re.ASCII)
_RESERVED = re.compile(r"(?:^|\.)(?:example(?:\.(?:com|org|net|edu))?|test|invalid|localhost|local)$", re.IGNORECASE)
_FILES = frozenset(
    {"service", "socket", "timer", "target", "mount", "png", "jpg", "jpeg", "gif", "svg", "webp", "js", "css"}
)
"""Suffixes that are not domains: systemd units (`getty@tty1.service`), high-resolution images (`logo@2x.png`)."""

_DOTTED = re.compile(r"\d\.\d{1,3}\.\d{1,3}\.\d", re.ASCII)
_IPV4 = re.compile(r"(?<![\w.-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\w)", re.ASCII)
_VERSION = re.compile(r"(?:\b(?:version|release|rev|ver|v)\b\.?|[=~<>]=|§|\bsection)\s*$", re.IGNORECASE)
_IPV6 = re.compile(r"[23][0-9A-Fa-f]{3}(?<![\w:.].{4}):(?:[0-9A-Fa-f]{0,4}:){2,6}[0-9A-Fa-f]{0,4}(?![\w:])", re.ASCII)

_DIGITS = re.compile(r"\d(?:[ ()./-]{0,2}\d){6,}", re.ASCII)
"""Candidates for phone, card and identity numbers; the other patterns search only around these."""

_INTERNATIONAL = re.compile(
    r"(?<![\w.+-])\+(?:1|7|2[07]|2[1-69]\d|3[0-469]|3[578]\d|4[013-9]|42\d|5[1-8]|5[09]\d|6[0-6]|6[7-9]\d|8[1246]|8[058]\d"
    r"|9[0-58]|9[679]\d)(?:[ .-]?\(\d{1,4}\))?(?:[ -]?\d{1,5}|\.\d{2,5}){2,6}(?![\w-]|\.\d)",
    re.ASCII,
)
"""A country's calling code (ITU-T E.164) and a number."""
_DATE = re.compile(r"\+\d{4}-\d\d-\d\d", re.ASCII)
_NATIONAL = re.compile(
    r"(?<![\w.+-])(?:\([2-9]\d\d\) ?|[2-9]\d\d[.-])[2-9]\d\d[.-]\d{4}(?![\w.-])"  # North America
    r"|(?<![\w.+-])1[3-9]\d([ -]?)\d{4}\1\d{4}(?![\w.-])"  # Chinese mobiles
    r"|(?<![\w.+-])0[1-9]\d{1,2}-[2-9]\d{6,7}(?![\w-])",  # Chinese landlines
    re.ASCII,
)
_CUE = re.compile(
    r"(?:\b(?:tel|phone|telephone|telefon|teléfono|téléphone|fax|mobile|mobil|handy)\b"
    r"|тел|电话|電話|手机|传真)[.:： ]{1,3}\(?$",
    re.IGNORECASE,
)
_LOCAL_NUMBER = re.compile(r"\d[\d ()/.-]{5,16}\d(?![\w-])", re.ASCII)
"""A phone number when it follows such a word."""

_CARD = re.compile(
    r"(?<![\w.-])(?:\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|\d{4}([ -])\d{6}\2\d{5}|\d{13,19})(?![\w.-])", re.ASCII
)
_ISSUERS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d+(?<=\d{16})|3[47]\d{13}"
    r"|(?:6011|64[4-9]|65)\d+(?<=\d{16})|62\d{14,17}|35(?:2[89]|[3-8]\d)\d{12}|3(?:0[0-5]|[689]\d)\d{11}"
)
"""Visa, Mastercard, American Express, Discover, UnionPay, JCB, Diners Club: prefixes and lengths (ISO/IEC 7812)."""
_IBAN = re.compile(
    r"[A-Z]{2}\d{2}(?<!\w.{4})(?:(?: [A-Z0-9]{4}){2,7}(?: [A-Z0-9]{1,3})?|[A-Z0-9]{11,28})(?!\w)", re.ASCII
)
_RESIDENT = re.compile(r"(?<![\w.-])[1-9]\d{16}[\dXx](?!\w)", re.ASCII)
_CPF = re.compile(r"(?<![\w.-])\d{3}\.\d{3}\.\d{3}-\d{2}(?![\w-])", re.ASCII)
_SSN = re.compile(r"(?<![\w.-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w.-])", re.ASCII)

IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AT": 20, "BE": 16, "BG": 22, "BR": 29, "CH": 21, "CY": 28, "CZ": 24, "DE": 22, "DK": 18,
    "EE": 20,
    "ES": 24, "FI": 18, "FR": 27, "GB": 22, "GR": 27, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IS": 26, "IT": 27,
    "LI": 21,
    "LT": 20, "LU": 20, "LV": 21, "MC": 27, "MT": 31, "NL": 18, "NO": 15, "PL": 28, "PT": 25, "RO": 24, "RS": 22,
    "SA": 24,
    "SE": 24, "SI": 19, "SK": 24, "TR": 26, "UA": 29,
}  # fmt: skip
"""IBAN lengths by country, from the SWIFT registry."""

VERSION_PART = 30
"""Three parts of at most this make a version or section number (8.2.4.45); one in 180 IP addresses looks like it."""


@dataclass(frozen=True)
class PersonalDataMask:
    """Masks each document's personal data. Drops nothing."""

    config: PersonalDataConfig
    name: str = "personal data"

    def __call__(self, documents: Sequence[Document]) -> list[Document | Edited]:
        return [self._mask(document) for document in documents]

    def _mask(self, document: Document) -> Document | Edited:
        text, edits = mask(document.text, self.config.kinds, code=document.language == CODE)
        if not edits:
            return document
        masked = replace(document, text=text, size=len(text.encode()))
        return Edited(masked, edits)  # no example, because more people read the report than the text


def mask(
    text: str, kinds: Sequence[PersonalKind] = ("identity", "email", "ip", "phone"), *, code: bool = False
) -> tuple[str, Mapping[str, int]]:
    """The text with personal data masked, and the number of matches of each kind.

    Args:
        code: whether the text is code. Ungrouped digits are ordinary numbers there, so phone and card numbers must be
            grouped or follow a word such as `tel`.
    """
    spans: list[tuple[int, int, str]] = []
    numbers = [match.span() for match in _DIGITS.finditer(text)]
    for kind, finder in _FINDERS.items():  # identity numbers first, since they may look like phone numbers
        if kind in kinds:
            for begin, end in finder(text, numbers, code):
                place = bisect_left(spans, (begin, end, ""))
                free = (not place or spans[place - 1][1] <= begin) and (place == len(spans) or spans[place][0] >= end)
                if free:
                    spans.insert(place, (begin, end, kind))
    parts, last = [], 0
    for begin, end, name in spans:
        parts += [text[last:begin], f"<{name}>"]
        last = end
    return "".join([*parts, text[last:]]), dict(Counter(name for _, _, name in spans))


def luhn(digits: str) -> bool:
    """Payment cards' check digit (ISO/IEC 7812-1, annex B)."""
    backwards = [int(digit) for digit in reversed(digits)]
    doubled = (sum(divmod(2 * digit, 10)) for digit in backwards[1::2])
    return (sum(backwards[::2]) + sum(doubled)) % 10 == 0


def iban(number: str) -> bool:
    """IBAN check digits, modulo 97 (ISO 13616), and the country's length."""
    compact = number.replace(" ", "")
    moved = compact[4:] + compact[:4]
    return (
        len(compact) == IBAN_LENGTHS.get(compact[:2]) and int("".join(str(int(each, 36)) for each in moved)) % 97 == 1
    )


def resident_id(number: str) -> bool:
    """Date of birth and check character of a Chinese resident identity number (GB 11643, ISO 7064 MOD 11-2)."""
    try:
        born = date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    total = sum(pow(2, 17 - place, 11) * int(digit) for place, digit in enumerate(number[:17]))
    return born.year >= 1880 and "10X98765432"[total % 11] == number[17].upper()


def cpf(number: str) -> bool:
    """The two check digits of a Brazilian taxpayer number, modulo 11."""
    digits = [int(digit) for digit in number if digit.isdigit()]
    for length in (9, 10):
        total = sum(digit * weight for digit, weight in zip(digits, range(length + 1, 1, -1), strict=False))
        if digits[length] != total * 10 % 11 % 10:
            return False
    return len(set(digits)) > 1


def _emails(text: str, numbers: Sequence[Span], code: bool) -> Iterator[Span]:
    for match in _AT.finditer(text):
        local = _LOCAL.search(text, max(0, match.start() - 64), match.start())
        domain = match[1]
        remote = local is not None and local[0] == "git" and text[match.end() : match.end() + 1] in (":", "/")
        if local and not remote and not _RESERVED.search(domain) and domain.rpartition(".")[2].lower() not in _FILES:
            yield local.start(), match.end()


def _addresses(text: str, numbers: Sequence[Span], code: bool) -> Iterator[Span]:
    for match in _IPV4.finditer(text) if _DOTTED.search(text) else ():
        small = sum(int(part) <= VERSION_PART for part in match[0].split("."))
        version = small >= 3 or _VERSION.search(text, max(0, match.start() - 16), match.start())
        if not version and _public(match[0]):
            yield match.span()
    if "::" in text or text.count(":") > 6:
        yield from (match.span() for match in _IPV6.finditer(text) if _public(match[0]))


def _public(address: str) -> bool:
    """Whether it is a public IP address: not private, local or reserved."""
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _phones(text: str, numbers: Sequence[Span], code: bool) -> Iterator[Span]:
    for match in _within(_INTERNATIONAL, text, numbers):
        digits = sum(map(str.isdigit, match[0]))
        number = match[0][1:].isdigit() and (
            code or text[match.start() - 1 : match.start()] in ("", "\n")
        )  # or a patch
        if 9 <= digits <= 15 and not number and not _DATE.match(match[0]):
            yield match.span()
    if not code:
        yield from (match.span() for match in _within(_NATIONAL, text, numbers))
    for begin, end in numbers:
        cued = _CUE.search(text, max(0, begin - 16), begin) and _LOCAL_NUMBER.match(text, begin, end + 1)
        if cued:
            yield cued.span()


def _identities(text: str, numbers: Sequence[Span], code: bool) -> Iterator[Span]:
    yield from (match.span() for match in _within(_RESIDENT, text, numbers) if resident_id(match[0]))
    for match in _within(_CARD, text, numbers):
        digits = re.sub(r"\D", "", match[0])
        seed = code and digits == match[0]  # far more often a random seed than a card
        if not seed and _ISSUERS.fullmatch(digits) and luhn(digits):
            yield match.span()
    yield from (match.span() for match in _within(_CPF, text, numbers) if cpf(match[0]))
    if not code:
        yield from (match.span() for match in _within(_SSN, text, numbers))
    yield from (match.span() for match in _IBAN.finditer(text) if iban(match[0]))


def _within(pattern: re.Pattern[str], text: str, numbers: Sequence[Span]) -> Iterator[re.Match[str]]:
    """Matches around numbers, including a preceding `+` or bracket and a following check character."""
    for begin, end in numbers:
        yield from pattern.finditer(text, max(0, begin - 2), end + 2)


_FINDERS: Mapping[PersonalKind, Callable[[str, Sequence[Span], bool], Iterator[Span]]] = {
    "identity": _identities,
    "email": _emails,
    "ip": _addresses,
    "phone": _phones,
}
