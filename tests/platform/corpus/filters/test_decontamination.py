"""Documents with test items are found by both rules, and no others."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cupola_platform.corpus.config import DecontaminationConfig, ExecutorConfig, Files, PrepareConfig, TokenizerConfig
from cupola_platform.corpus.core.documents import Document, Drop
from cupola_platform.corpus.filters.decontamination import (
    BuildTestItems,
    Decontamination,
    ItemIndex,
    common_subsequence,
)
from cupola_platform.corpus.pipeline.preparation import prepare
from cupola_platform.errors import SourceError

QUESTION = (
    "A farmer keeps forty seven hens and sells two dozen eggs every morning at the market. If each egg brings him "
    "fifteen cents, how many dollars does he earn in a week of seven days?"
)
CHINESE = "小明家里养了四十七只母鸡,每天早上在集市上卖出二十四个鸡蛋,每个鸡蛋卖一角五分钱,那么他一个星期一共能赚多少钱?"
WORDS = [f"word{i}" for i in range(3000)]


def filler(seed: int, count: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def document(text: str) -> Document:
    return Document("s", "a.txt", 0, text, len(text.encode()))


def step(folder: Path, items: list[str], config: DecontaminationConfig | None = None) -> Decontamination:
    config = config or DecontaminationConfig(tasks=True)
    ItemIndex.index([f"set#{i}" for i in range(len(items))], items, config.ngram).save(folder)
    return Decontamination(config, folder)


def judge(of: Decontamination, *texts: str) -> list[tuple[str, str] | None]:
    outcomes = of([document(text) for text in texts])
    return [(outcome.reason, outcome.detail) if isinstance(outcome, Drop) else None for outcome in outcomes]


def test_thirteen_consecutive_words_are_found_anywhere(tmp_path: Path) -> None:
    words = QUESTION.split()
    exact, short = " ".join(words[4:17]), " ".join(words[4:16])
    found, missed, upper = judge(
        step(tmp_path, [filler(9, 40), QUESTION]),
        f"{filler(1, 500)} {exact} {filler(2, 500)}",
        f"{filler(1, 500)} {short} {filler(2, 500)}",
        f"{filler(3, 5)}\n{exact.upper().replace(' ', ' -- ')}",
    )
    assert found == ("13 words in a row of a test item", f"set#1: {exact}")
    assert missed is None
    assert upper is not None


def test_an_item_with_words_changed_is_found_by_its_common_subsequence(tmp_path: Path) -> None:
    words = QUESTION.split()
    changed = " ".join("other" if place % 6 == 5 else word for place, word in enumerate(words))
    near = step(tmp_path / "near", [QUESTION])
    texts = [changed, f"{filler(1, 3000)} {changed} {filler(2, 3000)}", filler(4, 6000)]
    whole, inside, nothing = judge(near, *texts)
    assert whole is not None
    assert whole[0] == "common subsequence with a test item"
    assert inside is not None
    assert "farmer keeps forty seven" in inside[1]
    assert nothing is None
    rows_only = DecontaminationConfig(tasks=True, common_subsequence=False)
    assert judge(step(tmp_path / "rows", [QUESTION], rows_only), *texts) == [None, None, None]


def test_chinese_is_compared_by_its_characters(tmp_path: Path) -> None:
    of = step(tmp_path, [CHINESE])
    changed = (
        CHINESE.replace("四十七", "五十二")
        .replace("二十四", "三十")
        .replace("一角五分", "两角")
        .replace("一共", "总共")
    )
    other = (
        "清晨点燃熔炉,到中午铁水已经熔化。炉渣清除以后,铸工打开出铁口,把铁水倒进模具里。大件铸件需要一整天才能冷却。"
    )
    run, near, nothing = judge(of, other + CHINESE[5:25], other * 3 + changed + other * 3, other * 20)
    assert run is not None
    assert near is not None
    assert nothing is None


def test_a_long_document_that_shares_common_words_only_is_kept(tmp_path: Path) -> None:
    rng = random.Random(5)
    common = ["the", "of", "and", "a", "to", "in", "is", "that", "it", "was", "for", "on", "are", "as", "with", "his"]
    item = " ".join(f"{rng.choice(common)} {rng.choice(WORDS)}" for _ in range(20))
    book = " ".join(f"{rng.choice(common)} {rng.choice(WORDS)}" for _ in range(20_000))
    assert judge(step(tmp_path, [item]), book) == [None]


def test_a_short_item_contaminates_nothing(tmp_path: Path) -> None:
    assert judge(step(tmp_path, ["What is two plus two?", filler(1, 20)]), "What is two plus two? Four. " * 30) == [
        None
    ]


@given(st.lists(st.integers(0, 5), max_size=90), st.lists(st.integers(0, 5), max_size=90))
def test_the_common_subsequence_matches_the_textbook_algorithm(a: list[int], b: list[int]) -> None:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if left == right else max(table[i][j + 1], table[i + 1][j])
    assert common_subsequence(np.array(a, np.uint64), np.array(b, np.uint64)) == table[-1][-1]


def config_of(raw: Path, against: Path) -> PrepareConfig:
    return PrepareConfig(
        sources={"notes": Files(path=str(raw))},
        quality=None,
        language=None,
        decontamination=DecontaminationConfig(against={"sums": Files(path=str(against), text_field="question")}),
        tokenizer=TokenizerConfig(vocab_size=320),
        executor=ExecutorConfig(workers=1),
    )


def test_a_preparation_names_each_contaminated_document_and_what_matched(tmp_path: Path) -> None:
    (tmp_path / "sums.jsonl").write_text(json.dumps({"question": QUESTION}) + "\n" + json.dumps({"question": "Why?"}))
    raw = tmp_path / "raw"
    raw.mkdir()
    for i in range(6):
        (raw / f"{i}.txt").write_text(filler(i, 200) + (QUESTION if i in (1, 4) else ""))
    (raw / "task.txt").write_text(filler(7, 20) + " " + CHINESE)
    report = prepare(config_of(raw, tmp_path / "sums.jsonl"), tmp_path / "out", test_items={"tasks": [CHINESE]})
    step = next(tally for tally in report.steps if tally.step == "decontamination")
    assert (step.documents_in, step.documents_out) == (7, 4)
    lines = [json.loads(line) for line in (tmp_path / "out" / "contaminated.jsonl").read_text().splitlines()]
    assert [(Path(line["document"]).name, line["detail"].partition(": ")[0]) for line in lines] == [
        ("1.txt", "sums:sums.jsonl#1"), ("4.txt", "sums:sums.jsonl#1"), ("task.txt", "tasks#1"),
    ]  # fmt: skip
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert told["test_items"] == {"items": 2, "too_short": 1}


def test_unusable_evaluation_sets_are_refused(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.txt").write_text(filler(1, 200))
    sums = tmp_path / "sums.jsonl"
    with pytest.raises(SourceError, match=r"decontamination\.against\.sums: path=.* does not exist"):
        prepare(config_of(tmp_path / "raw", sums), tmp_path / "out")
    sums.write_text('{"text": "x"}')
    against = config_of(tmp_path / "raw", sums).decontamination
    assert against is not None
    with pytest.raises(SourceError, match=r"decontamination\.against\.sums: no row has text\. Set text_field"):
        list(BuildTestItems(against, {}, tmp_path / "items").run(None))
    sums.write_text('{"question": "too short"}')
    with pytest.raises(SourceError, match=r"none of 1 test items has 13 words"):
        list(BuildTestItems(against, {}, tmp_path / "items").run(None))
    with pytest.raises(ValidationError, match="name evaluation sets in `against`, set tasks: true"):
        DecontaminationConfig()
