"""Boilerplate in many documents is removed from all but the first."""

import json
import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from cupola_platform.corpus.config import (
    DeduplicationConfig,
    ExecutorConfig,
    Files,
    PrepareConfig,
    RepeatsConfig,
    TokenizerConfig,
)
from cupola_platform.corpus.core.document_files import save_array
from cupola_platform.corpus.core.documents import Tally
from cupola_platform.corpus.deduplication import duplicates
from cupola_platform.corpus.deduplication.repeats import FindRepeats, units
from cupola_platform.corpus.pipeline.preparation import prepare

NOTICE = "All rights reserved by the owners of this site.\nPlease read our terms before you go on."
MENU = "Home | Products | News | About us | Contact"
TWICE = "This paragraph stands in two documents only."


def body(seed: int) -> str:
    rng = random.Random(seed)
    return "\n\n".join(" ".join(f"word{rng.randrange(10_000)}" for _ in range(12)) for _ in range(4))


def raw_documents() -> list[str]:
    texts = [f"{MENU}\n{body(i)}\n\n{NOTICE}" for i in range(8)]
    texts[2] += f"\n\n{TWICE}"
    texts[5] = f"{TWICE}\n\n{texts[5]}"
    texts.append(f"{NOTICE}\n\n\n  \n{NOTICE.replace(' ', '  ')}")  # nothing else, and with other spaces
    texts.append(texts[3])  # a full duplicate does not count
    return texts


def config_of(folder: Path, repeats: RepeatsConfig | None, workers: int = 1) -> PrepareConfig:
    folder.mkdir(exist_ok=True)
    for i, text in enumerate(raw_documents()):
        (folder / f"{i}.txt").write_text(text)
    return PrepareConfig(
        sources={"a": Files(path=str(folder / "[0-4].txt")), "b": Files(path=str(folder / "[5-9].txt"))},
        language=None,
        quality=None,
        deduplication=DeduplicationConfig(near=False),
        repeats=repeats,
        tokenizer=TokenizerConfig(vocab_size=320),
        executor=ExecutorConfig(workers=workers),
    )


def texts_of(folder: Path) -> dict[str, str]:
    rows = parquet.read_table(folder / "documents.parquet").to_pylist()
    return {Path(row["path"]).stem: row["text"] for row in rows}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_paragraphs_and_lines_of_many_documents_stay_in_the_first_only(tmp_path: Path) -> None:
    config = config_of(tmp_path / "raw", RepeatsConfig(units=("paragraph", "line")))
    report = prepare(config, tmp_path / "out")
    texts = texts_of(tmp_path / "out")
    assert texts["0"] == f"{MENU}\n{body(0)}\n\n{NOTICE}"
    assert texts["1"] == body(1)  # the menu is removed as a line, the notice as a paragraph
    assert texts["2"] == f"{body(2)}\n\n{TWICE}"
    assert texts["5"] == f"{TWICE}\n\n{body(5)}"
    assert "8" not in texts
    tallies = {tally.step: tally for tally in report.steps}
    paragraphs, lines = tallies["repeated paragraphs"], tallies["repeated lines"]
    assert (paragraphs.documents_in, paragraphs.documents_out, paragraphs.changed) == (9, 8, 7)
    assert paragraphs.edits["paragraph"].count == 7
    assert paragraphs.edits["paragraph"].examples[0][1].startswith("All rights reserved")
    assert {reason: loss.documents for reason, loss in paragraphs.lost.items()} == {
        "nothing but repeated paragraphs": 1
    }
    assert (lines.changed, lines.edits["line"].count) == (7, 7)
    assert tallies["exact deduplication"].lost["exact duplicate"].documents == 1
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    step = next(each for each in told["steps"] if each["step"] == "repeated lines")
    assert step["edited"] == [
        {"kind": "line", "documents": 7, "count": 7, "examples": step["edited"][0]["examples"]}
    ]  # fmt: skip
    assert "What was changed" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_output_does_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    config = config_of(tmp_path / "raw", RepeatsConfig(units=("paragraph",)))
    prepare(config, tmp_path / "one")
    prepare(replace(config, executor=ExecutorConfig(workers=2)), tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_ranges_of_digests_give_the_same_repeats_as_a_dictionary(tmp_path: Path) -> None:
    rng = random.Random(3)
    tasks = [[[rng.getrandbits(64) >> 60 << 60 for _ in range(rng.randrange(6))] for _ in range(9)] for _ in range(3)]
    where, number, documents = defaultdict(list), 0, 0
    for rank, task in enumerate(tasks):
        flat = [value for document in task for value in document]
        save_array(tmp_path, rank, "units", np.array(flat, np.uint64).reshape(-1, 1))
        save_array(tmp_path, rank, "ends", np.cumsum([0, *map(len, task)]))
        for document in task:
            for value in document:
                where[value].append((number, documents))
                number += 1
            documents += 1
    expected = {
        (number, of[0][1])
        for of in where.values()
        if len({document for _, document in of}) >= 3
        for number, document in of
        if document != of[0][1]
    }
    for rank in range(5):
        list(FindRepeats(tmp_path, 3, 3, tmp_path / "pairs").run(None, rank, 5))
    found = duplicates.pairs_between(tmp_path / "pairs", np.int64(0), np.int64(number))
    assert {tuple(pair) for pair in found.tolist()} == expected
    assert len(expected) > 20


def test_units_cover_the_text() -> None:
    text = "one\ntwo\n \n\nthree\n"
    assert [text[begin:end] for begin, end, _ in units(text, "paragraph")] == ["one\ntwo", "three\n"]
    assert [text[begin:end] for begin, end, _ in units(text, "line")] == ["one", "two", " ", "", "three", ""]
    assert "".join(text[begin:after] for begin, _, after in units(text, "line")) == text


def test_a_tally_of_edits_comes_back_from_json() -> None:
    tally = Tally.of({**json.loads(json.dumps({"step": "s", "lost": {}, "edits": {"line": {
        "documents": 1, "count": 2, "examples": [["a", "b"]]}}})), "changed": 1, "documents_in": 1, "documents_out": 1})  # fmt: skip
    assert tally.edits["line"].examples == [("a", "b")]
    tally.check()
