"""Conversations made from tasks and from documents, without any model."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from cupola_platform.conversation import problem
from cupola_platform.errors import ConfigError
from cupola_trainer.data.documents import how_texts_go_on, pairs_of_split, what_functions_do
from cupola_trainer.data.instructions import TaskSource, make_conversations
from cupola_trainer.scoring.tasks import score

ONE_DIGIT = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}

SOURCE = '''
def dedent(text, *, width: int = 4):
    """Remove any common leading whitespace from every line. Blank lines are left alone.

    More about it.
    """

class Reader:
    def read(self):
        """Read what is there"""
    def close(self):
        """Close the stream and everything that is below it."""
    def _private(self):
        """Do something that nobody should ask about."""
'''
PROSE = """Title

Large models are trained on much text. They are then tuned on conversations. A third sentence.

- a list item is no prose. Not at all, whatever it says.
"""


def documents(folder: Path, rows: list[tuple[str, str, str]]) -> Path:
    """A tokens artifact's documents.parquet, with only the columns that are read."""
    folder.mkdir(exist_ok=True)
    columns = dict(zip(("path", "split", "text"), map(list, zip(*rows, strict=True)), strict=True))
    parquet.write_table(pa.table(columns), folder / "documents.parquet", row_group_size=7)
    return folder


def many(count: int) -> list[tuple[str, str, str]]:
    """Sources with one function each; every fifth document is held out."""
    code = 'def function_{0}(a):\n    """Give back the number {0} of everything."""\n'
    return [(f"{n}.py", "heldout" if n % 5 == 0 else "train", code.format(n)) for n in range(count)]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def make(to: Path, **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "tasks": [TaskSource(name="chain_sum", count=60, config=ONE_DIGIT), TaskSource(name="gcd", count=50)],
        "corpus": None,
        "corpus_conversations": 0,
        "heldout_per_task": 20,
        "seed": 3,
        "to": to,
    }
    return make_conversations(**given | changes)


def test_every_conversation_is_valid_and_its_response_scores_one(tmp_path: Path) -> None:
    report = make(tmp_path)
    train, heldout = rows(tmp_path / "train.jsonl"), rows(tmp_path / "heldout.jsonl")
    assert report == {
        "train": {"chain_sum": 60, "gcd": 50},
        "distinct": {"chain_sum": 60, "gcd": 50},
        "heldout": {"chain_sum": 20, "gcd": 17},
        "dropped": {},
    }
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert Counter(row["source"] for row in train) == {"chain_sum": 60, "gcd": 50}
    assert len({row["id"] for row in train + heldout}) == 147
    for row in train + heldout:
        assert problem(row["messages"]) is None
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert score(row["task"], row["messages"][1]["content"]) == 1.0


def test_too_few_prompts_are_repeated_and_never_held_out(tmp_path: Path) -> None:
    every = TaskSource(name="chain_sum", count=500, config=ONE_DIGIT)  # of 200 prompts, a quarter is held out
    report = make(tmp_path, tasks=[every], heldout_per_task=1000)
    assert report == {
        "train": {"chain_sum": 500},
        "distinct": {"chain_sum": 150},
        "heldout": {"chain_sum": 50},
        "dropped": {},
    }
    train, heldout = rows(tmp_path / "train.jsonl"), rows(tmp_path / "heldout.jsonl")
    times = Counter(row["messages"][0]["content"] for row in train)
    assert set(times.values()) == {3, 4}
    assert not set(times) & {row["messages"][0]["content"] for row in heldout}
    assert len({row["id"] for row in train + heldout}) == 550


def test_no_source_trains_on_prompts_that_another_holds_out(tmp_path: Path) -> None:
    twice = [TaskSource(name="chain_sum", count=100, config=ONE_DIGIT)] * 2
    report = make(tmp_path, tasks=twice, heldout_per_task=40)
    train = {row["messages"][0]["content"] for row in rows(tmp_path / "train.jsonl")}
    heldout = {row["messages"][0]["content"] for row in rows(tmp_path / "heldout.jsonl")}
    assert not train & heldout
    assert len(train) == report["distinct"]["chain_sum"]
    assert report["dropped"]["repeated"] == 2 * (35 + 100) - len(train) - len(heldout)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    corpus = documents(tmp_path / "tokens", many(40))
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make(tmp_path / name, seed=seed, corpus=corpus, corpus_conversations=10)
    a, b, c = ((tmp_path / name / "train.jsonl").read_bytes() for name in "abc")
    assert a == b != c


def test_conversations_from_the_corpus_are_held_out_with_their_documents(tmp_path: Path) -> None:
    corpus = documents(tmp_path / "tokens", many(40))
    report = make(tmp_path / "out", tasks=[], corpus=corpus, corpus_conversations=100, heldout_per_task=5)
    assert report == {"train": {"corpus": 32}, "distinct": {"corpus": 32}, "heldout": {"corpus": 5}, "dropped": {}}
    for name, held in (("train", False), ("heldout", True)):
        for row in rows(tmp_path / "out" / f"{name}.jsonl"):
            number = int(row["messages"][0]["content"].split("function_")[1].split("(")[0])
            assert (number % 5 == 0) is held
            assert row["task"] is None
            assert row["messages"][1]["content"] == f"Give back the number {number} of everything."


def test_a_docstring_answers_what_a_function_does() -> None:
    assert list(what_functions_do(SOURCE)) == [
        (
            "What does the Python function `dedent(text, *, width: int=4)` do?",
            "Remove any common leading whitespace from every line.",
        ),
        ("What does the Python function `close(self)` do?", "Close the stream and everything that is below it."),
    ]


def test_a_sentence_is_continued_by_the_next() -> None:
    assert list(how_texts_go_on(PROSE)) == [
        ("Continue this text: Large models are trained on much text.", "They are then tuned on conversations.")
    ]


def test_documents_without_pairs_are_counted(tmp_path: Path) -> None:
    corpus = documents(tmp_path, [("a.py", "train", "def ("), ("b.md", "train", "No."), ("c.py", "train", SOURCE)])
    drops: Counter[str] = Counter()
    assert len(list(pairs_of_split(corpus / "documents.parquet", "train", 0, drops))) == 2
    assert drops == {"unparsable_source": 1, "nothing_to_ask": 1}


def test_a_task_with_too_few_prompts_is_refused(tmp_path: Path) -> None:
    few = TaskSource(name="prime_factorization", config={"min_value": 2, "max_value": 4})
    with pytest.raises(ConfigError, match="has only 3 distinct prompts: too few"):
        make(tmp_path, tasks=[few])


def test_nothing_to_make_conversations_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to make conversations from"):
        make(tmp_path, tasks=[])
    with pytest.raises(ConfigError, match=r"documents\.parquet does not exist"):
        make(tmp_path, tasks=[], corpus=tmp_path, corpus_conversations=5)
