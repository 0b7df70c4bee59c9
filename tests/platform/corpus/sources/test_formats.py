"""Common text formats, detected by content and read into the corpus without silent losses."""

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pandas
import pyarrow as pa
import pytest
from datasets import Dataset
from pyarrow import feather, parquet

from cupola_platform.corpus.config import Files, HuggingFace, Source
from cupola_platform.corpus.core.chat_documents import render
from cupola_platform.corpus.core.documents import Document, Drop
from cupola_platform.corpus.sources.notebook import notebook_to_text
from cupola_platform.corpus.sources.reader import check_source, read_source
from cupola_platform.errors import SourceError

ROWS = [{"id": n, "text": f'Row {n},\nwith "quotes" and é.'} for n in range(3)]
TEXTS = [row["text"] for row in ROWS]


def read(source: Source, *, limit: int = 1000) -> tuple[list[Document], list[Drop]]:
    check_source(source)
    outcomes = list(read_source("s", source, max_document_bytes=limit, files=[]))
    return [of for of in outcomes if isinstance(of, Document)], [of for of in outcomes if isinstance(of, Drop)]


def write(path: Path) -> None:
    frame, data = pandas.DataFrame(ROWS), json.dumps(ROWS).encode()
    match path.name:
        case "a.json":
            path.write_bytes(data)
        case "b.json":
            path.write_bytes(json.dumps({"data": ROWS}, indent=2).encode())
        case "c.ndjson":
            frame.to_json(path, orient="records", lines=True)
        case "d.csv":
            frame.to_csv(path, index=False)
        case "e.tsv":
            frame.to_csv(path, sep="\t", index=False)
        case "f.arrow":
            feather.write_feather(pa.Table.from_pylist(ROWS), str(path))
        case "g.arrow":
            Dataset.from_list(ROWS).save_to_disk(str(path.with_name("saved")))
            (path.with_name("saved") / "data-00000-of-00001.arrow").rename(path)
        case "h.json.bz2":
            path.write_bytes(bz2.compress(data))
        case "i.csv.xz":
            path.write_bytes(lzma.compress(frame.to_csv(index=False).encode()))
        case "j.parquet.gz":
            parquet.write_table(pa.Table.from_pylist(ROWS), path.with_name("made"))
            path.write_bytes(gzip.compress(path.with_name("made").read_bytes()))
        case "k.jsonl":  # a Parquet file under another name
            parquet.write_table(pa.Table.from_pylist(ROWS), path)


@pytest.mark.parametrize(
    "name",
    ["a.json", "b.json", "c.ndjson", "d.csv", "e.tsv", "f.arrow", "g.arrow", "h.json.bz2", "i.csv.xz", "j.parquet.gz",
    "k.jsonl"],
)  # fmt: skip
def test_every_table_format_is_read(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    kept, dropped = read(Files(path=str(tmp_path / name)))
    assert [document.text for document in kept] == TEXTS
    assert len({document.row for document in kept}) == 3
    assert dropped == []


def test_bad_rows_of_an_array_and_of_a_table_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(
        '[{"text": "good"}, {"text": "\\ud800"}, {"txt": 1}, 5, {"text": "' + "x" * 2000 + '"}, {torn]'
    )
    (tmp_path / "b.csv").write_bytes(b"id,text\n1,good\n2,caf\xe9\n3,a,b\n")
    kept, dropped = read(Files(path=str(tmp_path)))
    assert [document.text for document in kept] == ["good", "good"]
    assert [(Path(drop.name).name, drop.reason) for drop in dropped] == [
        ("a.json#2", "broken UTF-8"), ("a.json#3", "no text field"), ("a.json#4", "no text field"),
        ("a.json#5", "longer than max_document_bytes"), ("a.json#6", "malformed row"), ("b.csv#3", "broken UTF-8"),
        ("b.csv#4", "malformed row"),
    ]  # fmt: skip


def test_a_git_lfs_pointer_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    _, [drop] = read(Files(path=str(tmp_path)))
    assert drop.reason == "unknown format"
    assert "git lfs pull" in drop.detail


CELLS = [
    {"cell_type": "markdown", "source": ["# Iron\n", "\n", "How hot is it?"]},
    {"cell_type": "code", "source": "heat = 1500\n", "outputs": [{"text": "1500"}]},
    {"cell_type": "code", "source": []},
]
NOTEBOOK = {"nbformat": 4, "metadata": {"language_info": {"name": "julia"}}, "cells": CELLS}


def test_a_notebooks_prose_and_code_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.ipynb").write_text(json.dumps(NOTEBOOK, indent=1))
    (tmp_path / "b.ipynb").write_text(json.dumps([1]))
    [document], [drop] = read(Files(path=str(tmp_path)))
    assert document.text == "# Iron\n\nHow hot is it?\n\n```julia\nheat = 1500\n```"
    assert (Path(drop.name).name, drop.reason) == ("b.ipynb", "malformed row")


@pytest.mark.parametrize(
    ("notebook", "text"),
    [
        (
            {"nbformat": 3, "worksheets": [{"cells": [{"cell_type": "code", "input": ["1 + 1"]}]}]},
            "```python\n1 + 1\n```",
        ),
        ({"cells": []}, ""),
        ({"cells": 5}, None),
        ({"worksheets": [5]}, None),
        ({"cells": ["x", {"cell_type": None, "source": None}], "metadata": []}, "None"),
    ],
)
def test_notebooks_of_any_version_and_shape_do_not_raise(notebook: Any, text: str | None) -> None:
    assert notebook_to_text(json.dumps(notebook)) == text


def test_utf16_text_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Ein Ofen für Eisen", encoding="utf-16")
    [document], _ = read(Files(path=str(tmp_path)))
    assert document.text == "Ein Ofen für Eisen"


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}],
        '[{"from": "human", "value": "A"}, {"from": "gpt", "value": "B"}]',
        [{"role": "system", "content": ""}, {"role": "user", "content": [{"type": "text", "text": "A"}]},
        {"role": "model", "content": "B"}], ["A", "B"],
    ],
)  # fmt: skip
def test_conversations_are_read_in_all_shapes_that_fine_tuning_accepts(messages: Any) -> None:
    assert render(messages) == ("<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n", "")


def test_a_dataset_with_a_damaged_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "good"}\n{"text": ')
    with pytest.raises(SourceError, match=r"split='train' cannot be read: "):
        check_source(HuggingFace(name=str(tmp_path)))
    outcomes = list(read_source("s", HuggingFace(name=str(tmp_path)), max_document_bytes=1000, files=[]))
    assert [of.reason for of in outcomes if isinstance(of, Drop)] == ["truncated or corrupt file"]
