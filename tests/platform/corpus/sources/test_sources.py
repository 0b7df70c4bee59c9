"""All sources of text, intact and broken."""

import gzip
import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
import zstandard
from blake3 import blake3
from pyarrow import parquet
from pydantic import TypeAdapter, ValidationError

from cupola_platform.corpus.config import Files, HuggingFace, PrepareConfig, PythonEnvironment, S3Prefix, Source
from cupola_platform.corpus.core.documents import Document, Drop
from cupola_platform.corpus.sources.markup import html_to_text
from cupola_platform.corpus.sources.reader import check_source, read_source, source_pieces, source_state
from cupola_platform.corpus.sources.source_files import SourceFile
from cupola_platform.errors import SourceError


def read(source: Source, *, limit: int = 1000) -> tuple[list[Document], list[Drop], list[SourceFile]]:
    files: list[SourceFile] = []
    outcomes = list(read_source("s", source, max_document_bytes=limit, files=files))
    kept = [outcome for outcome in outcomes if isinstance(outcome, Document)]
    return kept, [outcome for outcome in outcomes if isinstance(outcome, Drop)], files


def test_every_format_is_read(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": f"row {i}"}) + "\n" for i in (1, 2)).encode()
    (tmp_path / "a.txt").write_text("plain", encoding="utf-8-sig")
    (tmp_path / "b.md").write_text("# title")
    (tmp_path / "c.html").write_text("<head><title>no</title></head><body><p>one<p>two &amp; three<script>no</script>")
    (tmp_path / "d.jsonl").write_bytes(rows)
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress(rows))
    (tmp_path / "f.jsonl.zst").write_bytes(zstandard.compress(rows))
    (tmp_path / "g.txt.gz").write_bytes(gzip.compress(b"packed"))
    parquet.write_table(pyarrow.table({"text": ["cell 1", "cell 2"], "other": [1, 2]}), tmp_path / "h.parquet")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "i.txt").write_text("below")
    (tmp_path / "j.bin").write_bytes(b"not text")

    kept, dropped, files = read(Files(path=str(tmp_path)))

    texts = [document.text for document in kept]
    assert texts == [
        "plain", "# title", "one\ntwo & three", "row 1", "row 2", "below", "row 1", "row 2", "row 1", "row 2",
        "packed", "cell 1", "cell 2",
    ]  # fmt: skip
    assert dropped == []
    assert [Path(file.path).name for file in files] == [
        "a.txt", "b.md", "c.html", "d.jsonl", "i.txt", "e.jsonl.gz", "f.jsonl.zst", "g.txt.gz", "h.parquet",
    ]  # fmt: skip
    assert kept[4].name.endswith("d.jsonl#2")
    assert files[1].bytes == 7
    assert files[1].blake3 == blake3(b"# title").hexdigest()


def test_broken_input_is_reported_and_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    good = json.dumps({"text": "good"}).encode()
    lines = [
        good, b"{not json", b'{"other": 1}', b'{"text": 5}', b"[1, 2]", b'{"text": "nul \\u0000"}', b'{"text": " "}',
        b'{"text": "\\ud800"}', b'{"text": "\xff"}', json.dumps({"text": "x" * 2000}).encode(), b"[" * 5000, b"", good,
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines))
    kept, dropped, _ = read(Files(path=str(tmp_path / "rows.jsonl")))
    assert [document.text for document in kept] == ["good", "good"]
    assert [drop.reason for drop in dropped] == [
        "malformed row", "no text field", "no text field", "no text field", "NUL bytes", "empty", "broken UTF-8",
        "broken UTF-8", "longer than max_document_bytes", "malformed row",
    ]  # fmt: skip
    assert dropped[1].detail == "wanted 'text', has other"


@pytest.mark.parametrize("name", ["cut.jsonl.gz", "cut.jsonl.zst", "cut.parquet"])
def test_a_truncated_files_complete_rows_are_kept_and_the_loss_is_reported(tmp_path: Path, name: str) -> None:
    rows = [{"text": str(random.Random(i).getrandbits(2000))} for i in range(2000)]
    raw = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path = tmp_path / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(raw))
    elif name.endswith(".zst"):
        path.write_bytes(zstandard.compress(raw))
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])

    kept, dropped, _ = read(Files(path=str(path)))
    assert dropped[-1].reason == "truncated or corrupt file"
    assert len(dropped) == 1
    assert [document.text for document in kept] == [row["text"] for row in rows[: len(kept)]]
    assert len(kept) > 0 or name.endswith(".parquet")  # a parquet file's index is at its end


def test_rows_too_long_for_memory_are_skipped(tmp_path: Path) -> None:
    long = json.dumps({"text": "y" * 3_000_000}).encode()
    (tmp_path / "rows.jsonl").write_bytes(long + b"\n" + json.dumps({"text": "after"}).encode())
    kept, dropped, _ = read(Files(path=str(tmp_path)))
    assert [document.text for document in kept] == ["after"]
    assert [(drop.reason, drop.size) for drop in dropped] == [("longer than max_document_bytes", len(long) + 1)]


def test_broken_plain_files_are_dropped_with_their_reason(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_bytes(b"caf\xe9")
    (tmp_path / "2.txt").write_bytes(b"a\0b")
    (tmp_path / "3.txt").write_bytes(b"")
    (tmp_path / "4.txt").write_bytes(b"z" * 5000)
    kept, dropped, _ = read(Files(path=str(tmp_path)))
    assert kept == []
    assert [(drop.reason, drop.detail) for drop in dropped] == [
        ("broken UTF-8", "at byte 3"),
        ("NUL bytes", "at character 1"),
        ("empty", ""),
        ("longer than max_document_bytes", "5,000 bytes"),
    ]


def test_max_bytes_stops_before_the_document_that_exceeds_it(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}.txt").write_text("ten bytes!")
    kept, _, files = read(Files(path=str(tmp_path / "*.txt"), max_bytes=35))
    assert len(kept) == 3
    assert len(files) == 4


def test_a_column_with_another_name_can_be_configured(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"content": ["here", None]}), tmp_path / "a.parquet")
    kept, dropped, _ = read(Files(path=str(tmp_path), text_field="content"))
    assert [document.text for document in kept] == ["here"]
    assert [drop.reason for drop in dropped] == ["no text field"]
    assert [drop.reason for drop in read(Files(path=str(tmp_path)))[1]] == ["no text field", "no text field"]


@pytest.mark.parametrize(
    ("make", "path", "message"),
    [
        (None, "missing", r"does not exist\. The nearest existing folder is .* Give a file, a folder or a glob"),
        (None, "*.jsonl", r"does not exist\. Give a file, a folder or a glob"),
        ("empty.txt", "empty.txt", r"all 1 files are empty\. Give a source with text"),
        ("picture.png", "picture.png", r"has an unknown format\. Known: \.arrow"),
        ("picture.png", "", r"has no files of a known format\. Known:"),
    ],
)
def test_a_source_without_text_is_refused(tmp_path: Path, make: str | None, path: str, message: str) -> None:
    if make:
        (tmp_path / make).touch()
    with pytest.raises(SourceError, match=message):
        check_source(Files(path=str(tmp_path / path)))


def test_a_folder_that_is_a_hugging_face_dataset_is_read(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "train.jsonl").write_text('{"text": "first"}\n{"text": "second"}\n')
    saved = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["third"]})})
    saved.save_to_disk(tmp_path / "saved")
    for folder, texts in (("plain", ["first", "second"]), ("saved", ["third"])):
        source = HuggingFace(name=str(tmp_path / folder))
        check_source(source)
        kept, dropped, files = read(source)
        assert [document.text for document in kept] == texts
        assert dropped == []
        assert len(files) >= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "validation"}, "split='validation' cannot be read"),
        ({"text_field": "body"}, "has no column 'body'. It has text: set text_field"),
    ],
)
def test_a_dataset_without_the_split_or_column_is_refused(tmp_path: Path, change: dict[str, str], message: str) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "first"}\n')
    with pytest.raises(SourceError, match=message):
        check_source(HuggingFace(name=str(tmp_path), **change))


def test_a_hub_dataset_is_refused_if_the_hub_cannot_be_reached() -> None:
    with pytest.raises(SourceError, match=r"name='nobody/nothing'.* cannot be read: .*local folder"):
        check_source(HuggingFace(name="nobody/nothing"))


def test_the_python_environment_holds_twenty_megabytes_in_a_fixed_order() -> None:
    source = PythonEnvironment(max_bytes=30_000_000)
    check_source(source)
    pieces = source_pieces(source, 4_000_000, 1000)
    assert len(pieces) >= 6
    assert sum(entry.size for piece in pieces for entry in piece) > 20_000_000
    kept, _, files = read(PythonEnvironment(max_bytes=6_000_000), limit=2_000_000)
    assert 5_000_000 < sum(document.size for document in kept) <= 6_000_000
    names = [file.path for file in files]
    assert names == [file.path for file in read(PythonEnvironment(max_bytes=6_000_000), limit=2_000_000)[2]]
    assert "stdlib/ast.py" in names
    numpy = next(document for document in kept if document.path.startswith("packages/numpy-"))
    assert numpy.text.lstrip().startswith("<h1")  # the long description, without METADATA's headers
    assert not any("/tests/" in name for name in names)


def test_a_sources_state_changes_with_its_content(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    source = Files(path=str(tmp_path))
    before = source_state(source)
    assert source_state(source) == before
    (tmp_path / "b.txt").write_text("two")
    assert source_state(source) != before
    assert source_state(PythonEnvironment()) == source_state(PythonEnvironment())


def test_a_misspelt_key_or_type_is_refused() -> None:
    adapter: TypeAdapter[PrepareConfig] = TypeAdapter(PrepareConfig)
    good = adapter.validate_python({"sources": {"web": {"type": "files", "path": "x"}}})
    assert good.sources["web"] == Files(path="x")
    broken: tuple[dict[str, object], ...] = (
        {"sources": {"web": {"type": "files", "paht": "x"}}},
        {"sources": {"web": {"type": "file", "path": "x"}}},
        {"sources": {}},
        {"sources": {"Web/../x": {"type": "files", "path": "x"}}},
        {"sources": {"web": {"type": "s3", "url": "http://bucket/x"}}},
    )
    for bad in broken:
        with pytest.raises(ValidationError):
            adapter.validate_python(bad)
    schema = adapter.json_schema()
    assert schema["$defs"]["Files"]["properties"]["path"]["description"].startswith("A file, a folder")
    assert schema["$defs"]["Files"]["properties"]["max_bytes"]["description"].startswith("Stop before")


def test_html_keeps_text_and_lines_and_drops_the_rest() -> None:
    page = "<!-- c --><nav>menu</nav><h1>Title</h1><p>a <b>bold</b> word, 1 &lt; 2<br>next</p><style>x{}</style>"
    assert html_to_text(page) == "Title\n\na bold word, 1 < 2\nnext"


def test_objects_under_an_s3_prefix_are_read(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUPOLA_S3_ENDPOINT_URL", s3.endpoint_url)
    put = partial(s3.client.put_object, Bucket=s3.bucket)
    put(Key="corpus/b.jsonl.gz", Body=gzip.compress(b'{"text": "packed row"}\n'))
    put(Key="corpus/a.txt", Body=b"an object")
    put(Key="corpus/c.png", Body=b"no text")
    put(Key="empty/a.txt", Body=b"")
    source = S3Prefix(url=f"s3://{s3.bucket}/corpus/")

    check_source(source)
    kept, dropped, files = read(source)
    assert [document.text for document in kept] == ["an object", "packed row"]
    assert dropped == []
    assert (files[0].path, files[0].bytes) == (f"s3://{s3.bucket}/corpus/a.txt", 9)
    assert files[0].blake3 == blake3(b"an object").hexdigest()
    before = source_state(source)
    put(Key="corpus/a.txt", Body=b"an 0bject")
    assert source_state(source) != before

    for url, message in (
        (f"s3://{s3.bucket}/nothing/", "has no objects"),
        (f"s3://{s3.bucket}/corpus/c", "has no objects of a known format"),
        (f"s3://{s3.bucket}/empty/", "all 1 objects are empty"),
        ("s3://no-such-bucket/x", "cannot be read: NoSuchBucket"),
    ):
        with pytest.raises(SourceError, match=message):
            check_source(S3Prefix(url=url))
