"""Web pages, web archives, manuals and source trees become documents that record their origin."""

import gzip
import io
import os
from pathlib import Path

import pytest
from pyarrow import parquet
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from cupola_platform.corpus.config import Code, Files, PrepareConfig, Source, TokenizerConfig
from cupola_platform.corpus.core.documents import Document, Drop
from cupola_platform.corpus.pipeline.preparation import prepare
from cupola_platform.corpus.sources.formats import format_of
from cupola_platform.corpus.sources.markup import man_to_text
from cupola_platform.corpus.sources.reader import check_source, read_source
from cupola_platform.errors import SourceError

ARTICLE = (
    "<p>The furnace is lit before the sun is up, and the iron is melted by noon, as it was in the old days.</p>" * 5
)
PAGE = (
    "<html><body><nav><a href=/>Home</a> <a "
    f"href=/b>Blog</a></nav><article><h1>Iron</h1>{ARTICLE}</article><footer>Imprint</footer></body></html>"
)


def read(source: Source) -> tuple[list[Document], list[Drop]]:
    outcomes = list(read_source("s", source, max_document_bytes=100_000, files=[]))
    kept = [outcome for outcome in outcomes if isinstance(outcome, Document)]
    return kept, [outcome for outcome in outcomes if isinstance(outcome, Drop)]


def write_archive(path: Path, *, compressed: bool) -> None:
    pages = [
        (200, "text/html; charset=utf-8", PAGE.encode()),
        (404, "text/html", b"<p>not found</p>"),
        (200, "image/png", b"\x89PNG"),
        (200, "text/html; charset=gb18030",
        f"<html><body>{'<p>清晨点燃熔炉,到中午铁水已经熔化。</p>' * 9}</body></html>".encode("gb18030")), (200,
        "text/html; charset=utf-8", b"<p>caf\xe9</p>"),
    ]  # fmt: skip
    with path.open("wb") as out:
        writer = WARCWriter(out, gzip=compressed)
        for status, kind, body in pages:
            headers = StatusAndHeaders(f"{status} X", [("Content-Type", kind)], protocol="HTTP/1.1")
            writer.write_record(
                writer.create_warc_record("http://x/", "response", payload=io.BytesIO(body), http_headers=headers)
            )


@pytest.mark.parametrize("name", ["crawl.warc", "crawl.warc.gz"])
def test_a_web_archives_pages_are_read_in_their_own_encodings(tmp_path: Path, name: str) -> None:
    write_archive(tmp_path / name, compressed=name.endswith(".gz"))
    kept, dropped = read(Files(path=str(tmp_path), licence="CC-BY-4.0"))
    assert len(kept) == 2
    assert "The furnace is lit" in kept[0].text
    assert "Home" not in kept[0].text
    assert "清晨点燃熔炉" in kept[1].text
    assert [drop.reason for drop in dropped] == ["broken UTF-8"]
    assert kept[0].licence == "CC-BY-4.0"
    assert kept[0].end <= kept[1].begin < kept[1].end
    assert (kept[0].row, kept[1].row) == (1, 2)


def test_a_truncated_archive_is_reported(tmp_path: Path) -> None:
    write_archive(tmp_path / "crawl.warc.gz", compressed=True)
    data = (tmp_path / "crawl.warc.gz").read_bytes()
    (tmp_path / "crawl.warc.gz").write_bytes(data[:300])
    kept, dropped = read(Files(path=str(tmp_path)))
    assert len(kept) + len(dropped) >= 1
    assert all(drop.reason in ("truncated or corrupt file", "broken UTF-8", "empty") for drop in dropped)


def test_a_pages_menu_is_skipped_unless_whole_pages_are_requested(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(PAGE)
    (main,), _ = read(Files(path=str(tmp_path)))
    (whole,), _ = read(Files(path=str(tmp_path), whole_pages=True))
    assert "furnace" in main.text
    assert "Imprint" not in main.text
    assert "Imprint" in whole.text


MANUAL = r""".\" A comment
.TH LS 1 "2022-09-01" "GNU"
.SH NAME
ls \- list directory contents
.SH SYNOPSIS
.B ls
[\fIOPTION\fR]...
.de ZZ
nobody sees this
..
.SH "SEE ALSO"
.BR stat (1),
\(lqquoted\(rq and a back\eslash
"""


def test_a_manual_is_read_as_plain_text(tmp_path: Path) -> None:
    text = man_to_text(MANUAL)
    assert text.splitlines() == [
        "NAME", "ls - list directory contents", "", "SYNOPSIS", "ls", "[OPTION]...", "", "SEE ALSO", "stat (1),",
        "“quoted” and a back\\slash",
    ]  # fmt: skip
    (tmp_path / "ls.1.gz").write_bytes(gzip.compress(MANUAL.encode()))
    (tmp_path / "libz.so.1").write_bytes(b"\x7fELF")
    (document,), dropped = read(Files(path=str(tmp_path)))
    assert document.text == text
    assert dropped == []
    assert [format_of(name) for name in ("ls.1", "printf.3posix", "libz.so.1", "notes.10")] == [
        "man",
        "man",
        None,
        None,
    ]


def test_rows_record_their_offsets_in_the_file(tmp_path: Path) -> None:
    lines = [b'{"text": "one"}\n', b"\n", b'{"text": "two \xc3\xa9"}\n']
    (tmp_path / "rows.jsonl").write_bytes(b"".join(lines))
    kept, _ = read(Files(path=str(tmp_path)))
    data = (tmp_path / "rows.jsonl").read_bytes()
    assert [data[each.begin : each.end] for each in kept] == [lines[0], lines[2]]


def test_a_source_tree_is_read_by_type_and_by_licence(tmp_path: Path) -> None:
    mit = "Permission is hereby granted, free of charge, to any person obtaining a copy of this software"
    files = {
        "free/LICENSE": mit,
        "free/deep/a.py": "x = 1",
        "free/deep/b.py": "# SPDX-License-Identifier: GPL-3.0-only\ny = 2",
        "free/readme.txt": "not code",
        "other/c.py": "z = 3",
        "other/d.py": "# SPDX-License-Identifier: Apache-2.0\n",
        "free/.git/e.py": "hidden = 1",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    kept, dropped = read(Code(path=str(tmp_path)))
    names = {str(Path(document.path).relative_to(tmp_path)): document.licence for document in kept}
    assert names == {"free/deep/a.py": "MIT", "other/d.py": "Apache-2.0"}
    assert sorted(drop.reason for drop in dropped) == ["licence GPL-3.0-only", "licence unknown"]
    everything, _ = read(Code(path=str(tmp_path), licences=(), suffixes=(".py", ".txt")))
    assert len(everything) == 5
    with pytest.raises(SourceError, match=r"has no files of \.zig"):
        check_source(Code(path=str(tmp_path), suffixes=(".zig",)))


def test_links_and_pipes_in_a_source_tree_are_skipped(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tmp_path / "secret.py").write_text("key = 'secret'")
    (tree / "a.py").write_text("x = 1")
    (tree / "b.py").symlink_to("../secret.py")
    (tree / "c.py").symlink_to("nowhere.py")
    (tree / "LICENSE").symlink_to("../secret.py")
    os.mkfifo(tree / "d.py")
    kept, _ = read(Code(path=str(tree), licences=()))
    assert [Path(document.path).name for document in kept] == ["a.py"]


def test_licence_and_offsets_reach_the_table_of_documents(tmp_path: Path) -> None:
    rows = "".join(f'{{"text": "row {i} of a table with some words"}}\n' for i in range(4))
    (tmp_path / "rows.jsonl").write_text(rows)
    config = PrepareConfig(
        sources={"rows": Files(path=str(tmp_path / "rows.jsonl"), licence="CC0-1.0")},
        language=None, quality=None, deduplication=None, tokenizer=TokenizerConfig(vocab_size=320),
    )  # fmt: skip
    prepare(config, tmp_path / "out")
    table = parquet.read_table(tmp_path / "out" / "documents.parquet").to_pylist()
    assert {row["licence"] for row in table} == {"CC0-1.0"}
    assert [rows[row["begin"] : row["end"]].strip() for row in table] == rows.splitlines()
