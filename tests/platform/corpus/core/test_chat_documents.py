"""Instruction data in pretraining: conversations become documents, rendered by the chat template."""

import json
import random
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from cupola_platform.corpus.config import ExecutorConfig, Files, HuggingFace, PrepareConfig, TokenizerConfig
from cupola_platform.corpus.core.chat_documents import render
from cupola_platform.corpus.core.documents import Document, Drop
from cupola_platform.corpus.pipeline.preparation import prepare
from cupola_platform.corpus.sources.reader import check_source, read_source
from cupola_platform.corpus.sources.source_files import SourceFile
from cupola_platform.errors import SourceError

QUESTION, ANSWER = {"role": "user", "content": "How hot is it?"}, {"role": "assistant", "content": "1,500 degrees."}
WORDS = [
    "the",
    "founder",
    "opens",
    "a",
    "tap",
    "and",
    "fills",
    "his",
    "mould",
    "with",
    "iron",
    "that",
    "is",
    "to",
    "be",
    "cooled",
    "for",
    "days",
    "of",
    "rest",
    "in",
    "sand",
]


def read(source: Files) -> tuple[list[Document], list[Drop]]:
    files: list[SourceFile] = []
    outcomes = list(read_source("s", source, max_document_bytes=10_000, files=files))
    return [of for of in outcomes if isinstance(of, Document)], [of for of in outcomes if isinstance(of, Drop)]


def test_rows_with_conversations_are_rendered_and_broken_ones_counted(tmp_path: Path) -> None:
    good = [QUESTION, ANSWER]
    shared = [{"from": "human", "value": "Hello."}, {"from": "gpt", "value": "Good day."}]
    bad = [[], "text", [{"role": "pirate", "content": "Arr"}], [{"role": "user", "content": " "}], ["x"],
           [{"role": "user", "content": "end <|im_end|> now"}]]  # fmt: skip
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"messages": of}) + "\n" for of in [good, shared, *bad]) + '{"a": 1}'
    )
    parquet.write_table(pyarrow.table({"messages": [good, shared]}), tmp_path / "b.parquet")
    kept, dropped = read(Files(path=str(tmp_path), messages_field="messages"))
    assert [document.text for document in kept[:2]] == [
        "<|im_start|>user\nHow hot is it?<|im_end|>\n<|im_start|>assistant\n1,500 degrees.<|im_end|>\n",
        "<|im_start|>user\nHello.<|im_end|>\n<|im_start|>assistant\nGood day.<|im_end|>\n",
    ]
    assert [document.text for document in kept[2:]] == [
        document.text for document in kept[:2]
    ]  # columns are filled with nulls
    assert [of.reason for of in dropped] == [
        "no conversation", "no conversation", "malformed conversation", "malformed conversation", "no conversation",
        "control token in a message", "no text field",
    ]  # fmt: skip


def test_a_source_without_rows_or_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(SourceError, match=r"messages_field='messages': .*a\.txt has no rows"):
        check_source(Files(path=str(tmp_path), messages_field="messages"))
    (tmp_path / "a.txt").unlink()
    (tmp_path / "train.jsonl").write_text('{"chat": []}\n')
    with pytest.raises(SourceError, match=r"has no column 'messages'\. It has chat: set messages_field"):
        check_source(HuggingFace(name=str(tmp_path), messages_field="messages"))


def test_shards_contain_conversations_as_rendered_by_the_chat_template(tmp_path: Path) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from transformers import AutoTokenizer

    rng = random.Random(1)
    talks = [
        [
            {"role": "user", "content": f"What is {i}?"},
            {"role": "assistant", "content": " ".join(rng.choices(WORDS, k=5))},
        ]
        for i in range(20)
    ]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps({"messages": of}) + "\n" for of in talks))
    prose = [" ".join(rng.choices(WORDS, k=80)) + ". Written by <|im_start|>nobody<|im_end|>." for _ in range(6)]
    (tmp_path / "prose.jsonl").write_text("".join(json.dumps({"text": of}) + "\n" for of in prose))
    config = PrepareConfig(
        sources={
            "talks": Files(path=str(tmp_path / "talks.jsonl"), messages_field="messages", weight=0.1),
            "prose": Files(path=str(tmp_path / "prose.jsonl"), weight=0.9),
        },
        language=None,
        tokenizer=TokenizerConfig(vocab_size=384),
        executor=ExecutorConfig(workers=1),
    )
    prepare(config, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    end, start = tokenizer.convert_tokens_to_ids("<|endoftext|>"), tokenizer.convert_tokens_to_ids("<|im_start|>")
    expected = {tuple(tokenizer.apply_chat_template(of, tokenize=True, return_dict=False)) for of in talks}
    found = set()
    for split in ("train", "heldout"):
        for ids in IndexedDataset(str(tmp_path / "out" / "shards" / f"{split}-talks")):
            assert ids[-1] == end
            found.add(tuple(ids[:-1].tolist()))
        for ids in IndexedDataset(str(tmp_path / "out" / "shards" / f"{split}-prose")):
            assert start not in ids
    assert found == expected
    assert len(found) == 20
    assert json.loads((tmp_path / "out" / "index.json").read_text())["weights"] == {"talks": 0.1, "prose": 0.9}


def test_a_rendered_conversation_follows_the_template() -> None:
    system = {"role": "system", "content": "Be brief."}
    assert (
        render([system, QUESTION])[0]
        == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHow hot is it?<|im_end|>\n"
    )
