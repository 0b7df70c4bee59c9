"""The report of a preparation, as numbers and as a page, for any steps."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cupola_platform.corpus.config import (
    ExecutorConfig,
    Files,
    LanguageConfig,
    PrepareConfig,
    QualityConfig,
    TokenizerConfig,
)
from cupola_platform.corpus.config.steps import PersonalDataConfig
from cupola_platform.corpus.core.document_files import DocumentWriter, first_indices
from cupola_platform.corpus.core.documents import Document, Tally, drop
from cupola_platform.corpus.deduplication.clusters import cluster_sizes
from cupola_platform.corpus.pipeline.preparation import prepare
from cupola_platform.corpus.report.account import Account, write_report
from cupola_platform.corpus.report.page import render
from cupola_platform.corpus.tokenizer.tokenizing import Written
from cupola_platform.errors import ConfigError

LETTER = "Dear {who}, the casting of {n} pounds left the foundry today and will be with you in nine days from now. "
BRIEF = "Sehr geehrter {who}, der Guss von {n} Pfund verließ heute die Gießerei und ist in neun Tagen bei Ihnen. "


def rows(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Eight English letters, one of them three times more; four German ones, and a line of two words."""
    folder = tmp_path_factory.mktemp("report")
    letters = [
        "".join(LETTER.format(who=f"Mr {name}", n=n * k) for k in range(2, 9)) for n, name in enumerate("ABCDEFGH")
    ]
    briefe = ["".join(BRIEF.format(who=f"Herr {name}", n=n * k) for k in range(2, 9)) for n, name in enumerate("ABCD")]
    rows(folder / "letters.jsonl", [*letters, *[letters[0]] * 3, "Two words"])
    rows(folder / "briefe.jsonl", briefe)
    (folder / "bytes.tiktoken").write_text("".join(f"{_base64(byte)} {byte}\n" for byte in range(256)))
    config = PrepareConfig(
        sources={
            "letters": Files(path=str(folder / "letters.jsonl"), weight=1.0),
            "briefe": Files(path=str(folder / "briefe.jsonl"), weight=3.0),
        },
        language=LanguageConfig(min_confidence=0),
        quality=QualityConfig(min_words=9, rules=("gopher",)),
        heldout_fraction=0.2,
        tokenizer=TokenizerConfig(vocab_size=512, compare=(str(folder / "bytes.tiktoken"),)),
        executor=ExecutorConfig(workers=1),
    )
    prepare(config, folder / "tokens")
    told: dict[str, Any] = json.loads((folder / "tokens" / "report.json").read_text())
    assert (folder / "tokens" / "report.html").read_text() == render(told)
    return told


def _base64(byte: int) -> str:
    return base64.b64encode(bytes([byte])).decode()


def test_each_steps_counts_are_reported_by_source_and_add_up(report: dict[str, Any]) -> None:
    for step in report["steps"]:
        for size in ("documents_in", "documents_out", "bytes_in", "bytes_out"):
            assert step[size] == sum(of[size] for of in step["sources"].values()), (step["step"], size)
    read, exact = (
        next(step for step in report["steps"] if step["step"] == name) for name in ("read", "exact deduplication")
    )
    assert {name: of["documents_in"] for name, of in read["sources"].items()} == {"letters": 12, "briefe": 4}
    assert exact["sources"]["letters"]["documents_in"] - exact["sources"]["letters"]["documents_out"] == 3


def test_a_dropped_document_is_shown_with_the_number_and_its_text(report: dict[str, Any]) -> None:
    (quality,) = [step for step in report["steps"] if step["step"] == "quality"]
    (example,) = quality["dropped"][0]["examples"]
    assert (example["detail"], example["text"]) == ("2 words", "Two words")


def test_clusters_languages_lengths_mixture_and_compression_are_counted(report: dict[str, Any]) -> None:
    found = report["duplicates"]["exact deduplication"]
    assert (found["clusters"], found["dropped"], found["sizes"]) == (1, 3, {"4": 1})
    assert found["largest"][0]["documents"] == 4
    assert found["largest"][0]["document"].endswith("letters.jsonl#1")
    assert report["languages_of_sources"]["briefe"].keys() == {"de"}
    documents = sum(of["documents"] for of in report["languages"].values())
    assert documents == sum(report["lengths"].values()) == report["steps"][-1]["documents_out"]
    assert report["mixture"]["briefe"]["share_of_samples"] == 0.75
    assert sum(of["share_of_tokens"] for of in report["mixture"].values()) == pytest.approx(1)
    assert report["compression"]["text"] == "held-out"
    for ratios in report["compression"]["languages"].values():
        assert ratios["bytes"] == 1.0
        assert ratios["ours"] > 2


class Outline(HTMLParser):
    """What a page shows, and what it would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.fetched: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [f"{tag} {name}" for name, _ in attrs if name in {"src", "href"} or tag in {"script", "link"}]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_is_self_contained_and_shows_all_steps(report: dict[str, Any]) -> None:
    masked = {
        "step": "personal data <new>", "documents_in": 11, "documents_out": 9, "bytes_in": 900, "bytes_out": 700,
        "changed": 4, "edited": [{"kind": "email", "documents": 4, "count": 7, "examples": []}],
        "sources": {"letters": {"documents_in": 11, "documents_out": 9, "bytes_in": 900, "bytes_out": 700}},
        "dropped": [{"reason": "mostly addresses", "documents": 2, "bytes": 100,
                     "examples": [{"document": "a.txt", "detail": "0.91", "text": "<b>not markup</b>"}]}],
    }  # fmt: skip
    page = Outline(render({**report, "steps": [*report["steps"], masked]}))
    assert page.fetched == []
    text = " ".join(page.text)
    for said in (
        "personal data <new>",
        "mostly addresses",
        "7 in 4 documents",
        "<b>not markup</b>",
        "Mixture",
        "Lengths",
        "Compression",
    ):
        assert said in text, said


def test_the_page_of_many_sources_and_languages_shows_the_largest(report: dict[str, Any]) -> None:
    languages = {f"l{n:03}": {"documents": 1, "tokens": 10, "bytes": 5000 - n} for n in range(300)}
    text = " ".join(Outline(render({**report, "languages": languages})).text)
    assert "The 20 biggest of 300 languages." in text
    assert "l019" in text
    assert "l020" not in text


def test_clusters_are_named_by_the_document_that_was_kept(tmp_path: Path) -> None:
    for task in range(2):
        with DocumentWriter(tmp_path, task) as writer:
            for row in range(10):
                writer.add(Document("s", f"file{task}", row, "text", 4, digest=f"{row:032x}"))
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    np.save(pairs / "00000.npy", np.array([[n, 11] for n in range(12, 20)] + [[3, 2]]))
    np.save(pairs / "00001.npy", np.array([[5, 4], [6, 4]]))
    found = cluster_sizes(pairs, tmp_path, first_indices(tmp_path, 2))
    assert (found["clusters"], found["dropped"], found["sizes"]) == (3, 11, {"2": 2, "8": 1})
    assert [(of["document"], of["documents"]) for of in found["largest"]] == [
        ("file1#1", 9),
        ("file0#4", 3),
        ("file0#2", 2),
    ]


def test_an_example_has_the_number_and_the_beginning_of_the_text_on_one_line() -> None:
    refused = drop(Document("s", "a.txt", 0, "one\n\n  two " + "x" * 500, 512), "too long", "512 bytes")
    assert refused.detail == "512 bytes"
    assert re.fullmatch(r"one two x{152}", refused.text)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("nowhere.tiktoken", r"tokenizer\.compare: .*'nowhere\.tiktoken' is not a file"),
        ("cl100k", r"tokenizer\.compare: cl100k: cl100k needs its ranks file, which is never downloaded"),
    ],
)
def test_a_missing_vocabulary_to_compare_with_is_refused_before_anything_is_read(
    tmp_path: Path, named: str, said: str
) -> None:
    rows(tmp_path / "a.jsonl", ["text"])
    config = PrepareConfig(
        sources={"a": Files(path=str(tmp_path / "a.jsonl"))}, tokenizer=TokenizerConfig(compare=(named,))
    )
    with pytest.raises(ConfigError, match=said):
        prepare(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_personal_data_is_also_masked_in_examples(tmp_path: Path) -> None:
    letter = Document("s", "a.txt", 0, "Write to jane.doe@mail.org", 26)
    tally = Tally("quality")
    tally.count(letter, drop(letter, "too few words", "3 words"))
    for masked, shown in (
        (None, "Write to jane.doe@mail.org"),
        (PersonalDataConfig(), "Write to <email>"),
    ):
        write_report(tmp_path, Account([{"s": tally}], Written(), 64, personal_data=masked))
        step = json.loads((tmp_path / "report.json").read_text())["steps"][0]
        assert step["dropped"][0]["examples"][0]["text"] == shown


def test_a_weight_that_only_some_sources_have_is_refused(tmp_path: Path) -> None:
    rows(tmp_path / "a.jsonl", ["text"])
    path = str(tmp_path / "a.jsonl")
    config = PrepareConfig(sources={"a": Files(path=path, weight=2.0), "b": Files(path=path)})
    with pytest.raises(ConfigError, match=r"^sources\.a has a weight, but sources\.b has none\. Give a weight"):
        prepare(config, tmp_path / "out")
