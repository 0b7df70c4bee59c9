"""The cleaning steps, one at a time."""

import unicodedata
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cupola_platform.corpus.config import (
    Files,
    LanguageConfig,
    PerplexityConfig,
    PrepareConfig,
    PythonEnvironment,
    QualityConfig,
)
from cupola_platform.corpus.core.documents import Document, Drop, Tally
from cupola_platform.corpus.core.heldout import Extremes, Sample, draws
from cupola_platform.corpus.filters.language import LanguageFilter, identify, looks_like_code
from cupola_platform.corpus.filters.quality import QualityFilter
from cupola_platform.corpus.filters.unicode_repair import UnicodeRepair, repair
from cupola_platform.corpus.pipeline.checks import check_config
from cupola_platform.errors import ConfigError, SourceError

ENGLISH = (
    "The furnace is lit in the morning, and the iron is melted by noon. When the slag has been drawn off, the founder "
    "opens the tap and fills the moulds. It takes a day for the larger castings to cool, and they are cleaned with a "
    "brush before anyone measures them. A good founder keeps a record of every charge that went into the stack."
)
GERMAN = (
    "Der Ofen wird am Morgen angezündet, und bis zum Mittag ist das Eisen geschmolzen. Wenn die Schlacke abgezogen ist, "
    "öffnet der Gießer den Abstich und füllt die Formen. Große Gussstücke brauchen einen ganzen Tag, um abzukühlen."
)
CHINESE = (
    "清晨点燃熔炉,到中午铁水已经熔化。炉渣清除以后,铸工打开出铁口,把铁水倒进模具里。大件铸件需要一整天才能冷却,"
    "之后要用刷子清理干净,再进行测量。好的铸工会把每一批炉料都仔细记录下来,以便日后查阅和比较。"
)
CODE = '''import math


class Circle:
    """A circle around the origin."""

    def __init__(self, radius: float) -> None:
        self.radius = radius

    def area(self) -> float:
        return math.pi * self.radius**2

    def grow(self, factor: float) -> "Circle":
        if factor <= 0:
            raise ValueError(f"factor={factor} must be positive")
        return Circle(self.radius * factor)


def total(circles: list[Circle]) -> float:
    return sum(circle.area() for circle in circles)
'''


def document(text: str, path: str = "a.txt", source: str = "s") -> Document:
    return Document(source, path, 0, text, len(text.encode()))


def judged(text: str, language: str, min_words: int = 50) -> Document | Drop:
    (outcome,) = QualityFilter(QualityConfig(min_words=min_words))([replace(document(text), language=language)])
    return outcome


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("cafe\u0301", "café"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("one\x07 two\x1b[31m red\x1b[0m", "one two red"),
        ("\ufeffmark and soft\u00adhyphen", "mark and softhyphen"),
        ("CafÃ© au lait, â€œquotedâ€\x9d", "Café au lait, “quoted”"),
        ("æ—¥æœ¬èªž", "日本語"),
        ("Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "привет"),
        ("NÃO, “CAFÉ” e “IRMÃ”, Ünïcödé à « lui »", "NÃO, “CAFÉ” e “IRMÃ”, Ünïcödé à « lui »"),
        ("plain\tascii\n", "plain\tascii\n"),
    ],
)
def test_text_is_repaired(text: str, mended: str) -> None:
    assert repair(text) == mended


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_repaired_text_is_normalized_and_has_no_control_characters(text: str) -> None:
    mended = repair(text)
    assert unicodedata.is_normalized("NFC", mended)
    assert not any(character < " " and character not in "\t\n\0" for character in mended)


def test_text_garbled_beyond_repair_is_dropped() -> None:
    kept, lost = UnicodeRepair()([document("cafe\u0301"), document("caf\ufffd au lait")])
    assert isinstance(kept, Document)
    assert (kept.text, kept.size) == ("café", 5)
    assert isinstance(lost, Drop)
    assert (lost.reason, lost.detail) == ("unreadable characters", "1 of 12 characters")
    (control,) = UnicodeRepair()([document("\x01\x02")])
    assert isinstance(control, Drop)
    assert control.reason == "nothing but control characters"


@pytest.mark.parametrize(("text", "language"), [(ENGLISH, "en"), (GERMAN, "de"), (CHINESE, "zh"), (CODE, "code")])
def test_languages_and_code_are_told_apart(text: str, language: str) -> None:
    found, confidence = identify(text)
    assert found == language
    assert confidence > 0.8


def test_a_python_file_is_code_whatever_it_contains() -> None:
    assert identify("hello", "stdlib/this.py") == ("code", 1.0)
    assert not looks_like_code(ENGLISH)
    assert not looks_like_code("x = 1\ny = 2")


def test_only_wanted_languages_are_kept() -> None:
    step = LanguageFilter(LanguageConfig(keep=("en", "code")))
    outcomes = step([document(ENGLISH), document(GERMAN), document(CODE, "x.py"), document("1 2 3 4")])
    assert [out.language if isinstance(out, Document) else out.reason for out in outcomes] == [
        "en", "language de", "code", "language unclear",
    ]  # fmt: skip


def test_an_unknown_language_is_refused_before_anything_starts() -> None:
    config = PrepareConfig(sources={"py": PythonEnvironment()}, language=LanguageConfig(keep=("english",)))
    with pytest.raises(ConfigError, match=r"language.keep='english' is not a language .* Known: .* en "):
        check_config(config)
    for change, line in (
        ({"quality": QualityConfig(languages={"german": {}})}, "quality.languages='german' is not a language"),
        ({"perplexity": PerplexityConfig(languages=("English",))}, "perplexity.languages='English' is not a language"),
        ({"quality": QualityConfig(languages={"de": {}}), "language": None}, "quality.languages names languages, but"),
    ):
        with pytest.raises(ConfigError, match=line):
            check_config(PrepareConfig(sources={"py": PythonEnvironment()}, **change))  # type: ignore[arg-type]
    with pytest.raises(SourceError, match=r"sources\.web: path='/no/such' does not exist"):
        check_config(PrepareConfig(sources={"web": Files(path="/no/such")}))


@pytest.mark.parametrize(("text", "language"), [(ENGLISH, "en"), (GERMAN, "de"), (CHINESE, "zh"), (CODE, "code")])
def test_good_text_passes(text: str, language: str) -> None:
    assert isinstance(judged(text, language, min_words=30), Document)


@pytest.mark.parametrize(
    ("text", "language", "reason"),
    [
        ("too short", "en", "too few words"),
        ("好", "zh", "too few words"),
        ("x = 1", "code", "too few words"),
        ("🙂 🚀 🎉 " * 40, "en", "words without letters"),
        ("pneumonoultramicroscopic silicovolcanoconiosis " * 30, "en", "mean word length"),
        (GERMAN * 2, "en", "few stop words"),
        (ENGLISH.replace("e", "#e"), "en", "symbols"),
        ("\n".join(f"- {word} and the rest of the line" for word in ENGLISH.split()), "en", "bullet lines"),
        (
            "\n".join(
                f"{word} is the start of one more line that never comes to an end..." for word in ENGLISH.split()
            ),
            "en",
            "ellipsis lines",
        ),
        ("\n".join(ENGLISH.replace(",", "").replace(".", "").split()), "en", "lines without punctuation"),
        (ENGLISH + " Lorem ipsum dolor sit amet.", "en", "lorem ipsum"),
        (ENGLISH + " buy the new shoes" * 30 + ".", "en", "repeated phrase"),
        ("\n".join([ENGLISH] * 3), "en", "repeated lines"),
        ("\n".join([CHINESE] * 3), "zh", "repeated lines"),
        ("values = [" + ", ".join(f"{i} + {i}" for i in range(2000)) + "]", "code", "long lines of code"),
        ("\n".join(f"    0x{i:04x}, {i * 7}," for i in range(200)), "code", "code that is data"),
    ],
)
def test_poor_text_is_dropped_with_its_reason(text: str, language: str, reason: str) -> None:
    outcome = judged(text, language)
    assert isinstance(outcome, Drop)
    assert outcome.reason == reason


def test_the_first_broken_rule_is_the_reason() -> None:
    kept, lost = QualityFilter(QualityConfig(min_words=30))([document(ENGLISH), document("too short")])
    assert kept == document(ENGLISH)
    assert isinstance(lost, Drop)
    assert (lost.reason, lost.detail, lost.size) == ("too few words", "2 words", 9)


def digests(count: int, seed: int = 0) -> NDArray[np.uint64]:
    return np.random.default_rng(seed).integers(0, 1 << 63, (count, 2), dtype=np.uint64) * np.uint64(2)


def held(drawn: NDArray[np.float64], fraction: float) -> list[bool]:
    extremes = Extremes()
    for start in range(0, len(drawn), 2):  # as tasks see them
        part = drawn[start : start + 2]
        extremes.see(part, np.arange(start, start + len(part)))
    return list(extremes.heldout(drawn, fraction).tolist())


def test_the_held_out_share_is_about_the_fraction_and_choices_stay_when_documents_are_added() -> None:
    some = digests(5000)
    drawn = draws(some, 0)
    assert 70 < (drawn < 0.02).sum() < 130
    more = np.concatenate([digests(100, 1), some])
    assert (draws(more, 0)[100:] == drawn).all()
    assert (draws(some, 1) != drawn).any()


def test_every_source_has_a_document_on_each_side() -> None:
    three, two, one = draws(digests(3), 0), draws(digests(2), 0), draws(digests(1), 0)
    for fraction in (1e-9, 1 - 1e-9):
        assert held(three, fraction).count(True) == (1 if fraction < 0.5 else 2)
        assert held(two, fraction).count(True) == 1
        assert held(one, fraction) == [False]
    assert held(np.repeat(three, 2), 1e-9).count(True) == 2  # equal texts are on one side


def test_the_tokenizers_sample_does_not_depend_on_the_order_of_documents() -> None:
    drawn, sizes = draws(digests(1000), 3), np.full(1000, 10)
    whole, parted = Sample(500), Sample(500)
    whole.see(drawn, np.arange(1000), sizes)
    for start in range(0, 1000, 7):
        part = slice(start, start + 7)
        parted.see(drawn[part], np.arange(1000)[part], sizes[part])
    assert whole.numbers().tolist() == parted.numbers().tolist() == sorted(np.argsort(drawn)[:50].tolist())


def test_a_step_that_loses_count_is_caught() -> None:
    tally = Tally("step")
    tally.count(None, document("a"))
    tally.documents_out = 0
    with pytest.raises(AssertionError, match="1 documents in, 0 kept, 0 dropped"):
        tally.check()
