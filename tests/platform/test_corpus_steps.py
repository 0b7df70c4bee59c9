"""The steps of cleaning, one at a time."""

import random
import unicodedata
from dataclasses import replace

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from cupola_platform.corpus.checking import check_config
from cupola_platform.corpus.config import Files, LanguageConfig, PrepareConfig, PythonEnvironment, QualityConfig
from cupola_platform.corpus.deduplication import ExactDeduplication
from cupola_platform.corpus.documents import Document, Drop, Tally
from cupola_platform.corpus.engine import Step, run_chunk, run_per_document
from cupola_platform.corpus.heldout import choose_heldout
from cupola_platform.corpus.language import LanguageFilter, identify, looks_like_code
from cupola_platform.corpus.pool import WorkerPool
from cupola_platform.corpus.quality import QualityFilter, findings
from cupola_platform.corpus.unicode_repair import UnicodeRepair, repair
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


def reasons(text: str, language: str = "en", min_words: int = 50) -> list[str]:
    return [reason for reason, _ in findings(text, language, QualityConfig(min_words=min_words))]


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
def test_text_is_mended(text: str, mended: str) -> None:
    assert repair(text) == mended


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_mended_text_is_normal_and_has_no_control_characters(text: str) -> None:
    mended = repair(text)
    assert unicodedata.is_normalized("NFC", mended)
    assert not any(character < " " and character not in "\t\n\0" for character in mended)


def test_what_was_lost_before_it_was_written_is_dropped() -> None:
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


def test_a_python_file_is_code_whatever_it_says() -> None:
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
    with pytest.raises(ConfigError, match=r"language.keep='english' is no language .* Known are .* en "):
        check_config(config)
    with pytest.raises(SourceError, match=r"sources\.web: path='/no/such' does not exist"):
        check_config(PrepareConfig(sources={"web": Files(path="/no/such")}))


@pytest.mark.parametrize(("text", "language"), [(ENGLISH, "en"), (GERMAN, "de"), (CHINESE, "zh"), (CODE, "code")])
def test_good_text_passes(text: str, language: str) -> None:
    assert reasons(text, language, min_words=30) == []


@pytest.mark.parametrize(
    ("text", "language", "reason"),
    [
        ("too short", "en", "too few words"),
        ("好", "zh", "too few words"),
        ("x = 1", "code", "too few words"),
        ("🙂 🚀 🎉 " * 40, "en", "words without letters"),
        ("pneumonoultramicroscopic silicovolcanoconiosis " * 30, "en", "mean word length"),
        (GERMAN * 2, "en", "few stop words"),
        (" ".join(f"{word} #" for word in ENGLISH.split()), "en", "symbols"),
        ("\n".join(f"- {word} and the rest of the line" for word in ENGLISH.split()), "en", "bullet lines"),
        ("\n".join(f"{word} is the start..." for word in ENGLISH.split()), "en", "ellipsis lines"),
        ("\n".join(ENGLISH.replace(",", "").replace(".", "").split()), "en", "lines without punctuation"),
        (ENGLISH + " Lorem ipsum dolor sit amet.", "en", "lorem ipsum"),
        (ENGLISH + " buy the new shoes" * 30, "en", "repeated phrase"),
        ("\n".join([ENGLISH] * 3), "en", "repeated lines"),
        ("\n".join([CHINESE] * 3), "zh", "repeated lines"),
        ("values = [" + ", ".join(f"{i} + {i}" for i in range(2000)) + "]", "code", "long lines of code"),
        ("\n".join(f"    0x{i:04x}, {i * 7}," for i in range(200)), "code", "code that is data"),
    ],
)
def test_poor_text_is_dropped_with_its_reason(text: str, language: str, reason: str) -> None:
    assert reason in reasons(text, language)


def test_the_first_broken_rule_is_the_reason() -> None:
    kept, lost = QualityFilter(QualityConfig(min_words=30))([document(ENGLISH), document("too short")])
    assert kept == document(ENGLISH)
    assert isinstance(lost, Drop)
    assert (lost.reason, lost.detail, lost.size) == ("too few words", "2 words", 9)


def test_exact_copies_are_dropped_after_the_first() -> None:
    first, copy, other = ExactDeduplication()([document("one", "a"), document("one", "b"), document("two", "c")])
    assert isinstance(first, Document)
    assert first.digest == blake3(b"one").hexdigest()
    assert isinstance(copy, Drop)
    assert (copy.reason, copy.detail) == ("exact duplicate", "of a")
    assert isinstance(other, Document)


def some_documents(count: int, source: str = "s") -> list[Document]:
    return [replace(document(f"text {i}", source=source), digest=f"{source}{i}") for i in range(count)]


def test_the_held_out_share_is_about_what_was_asked_and_stays_when_documents_come() -> None:
    documents = some_documents(5000)
    heldout = choose_heldout(documents, 0.02, seed=0)
    assert 70 < sum(heldout) < 130
    shuffled = list(zip(documents, heldout, strict=True))
    random.Random(0).shuffle(shuffled)
    more = [each for each, _ in shuffled] + some_documents(100, "t")
    assert choose_heldout(more, 0.02, seed=0)[:5000] == [out for _, out in shuffled]
    assert choose_heldout(documents, 0.02, seed=1) != heldout


def test_every_source_has_a_document_on_each_side() -> None:
    documents = some_documents(3, "a") + some_documents(1, "b") + some_documents(2, "c")
    for fraction in (1e-9, 1 - 1e-9):
        heldout = choose_heldout(documents, fraction, seed=0)
        assert sorted(heldout[:3]).count(True) == (1 if fraction < 0.5 else 2)
        assert heldout[4:].count(True) == 1
    assert choose_heldout(documents, 1e-9, seed=0)[3] is False


def test_the_number_of_workers_does_not_change_what_is_kept_or_counted() -> None:
    rng = random.Random(0)
    documents = [
        document(rng.choice([ENGLISH, GERMAN, CODE, "short", "caf\ufffd"]) + f"\nNumber {i}.", f"{i}.txt")
        for i in range(3000)
    ]
    steps: list[Step] = [UnicodeRepair(), LanguageFilter(LanguageConfig()), QualityFilter(QualityConfig(min_words=30))]
    alone, tallies = run_chunk((steps, documents))
    seen: list[int] = []
    with WorkerPool(2) as pool:
        spread, others = run_per_document(steps, documents, pool, seen.append)
    assert spread == alone
    assert [replace(tally, seconds=0.0) for tally in others] == [replace(tally, seconds=0.0) for tally in tallies]
    assert sum(seen) == sum(each.size for each in documents)


def test_a_step_that_loses_count_is_caught() -> None:
    tally = Tally("step")
    tally.count(None, document("a"))
    tally.documents_out = 0
    with pytest.raises(AssertionError, match="1 documents in, 0 kept, 0 dropped"):
        tally.check()
