"""Rows of foreign files: the content decides the format, bad rows are counted and the rest is read."""

import bz2
import gzip
import json
import lzma
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pyarrow as pa
import pytest
import zstandard
from datasets import Dataset
from pyarrow import feather, parquet

from cupola_platform.rows.drops import Drops
from cupola_platform.rows.reading import read

ROWS = [{"prompt": f"Is {n}\u2028 more?", "completion": "Yes."} for n in range(3)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
CONVERSATION = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "It is."}]


def rows(path: Path) -> list[Any]:
    return [record.row for record in read(path)]


def faults(path: Path) -> list[tuple[int, str]]:
    return [(record.number, record.reason) for record in read(path) if record.row is None]


def table_bytes(path: Path, suffix: str) -> bytes:
    table = pa.Table.from_pylist(ROWS)
    match suffix:
        case "parquet":
            parquet.write_table(table, path)
        case "feather":
            feather.write_feather(table, str(path))
        case "stream":
            Dataset.from_list(ROWS).save_to_disk(str(path))
            path = path / "data-00000-of-00001.arrow"
        case "csv" | "tsv":
            pandas.DataFrame(ROWS).to_csv(path, sep="," if suffix == "csv" else "\t", index=False)
    return path.read_bytes()


@pytest.mark.parametrize(
    "data",
    [
        LINES,
        b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n\r\n"),
        json.dumps(ROWS).encode(),
        json.dumps(ROWS, indent=2).encode(),
        json.dumps({"version": "1.0", "data": ROWS}).encode(),
        json.dumps({"version": "1.0", "data": ROWS}, indent=2).encode(),
        b"\n".join(json.dumps(row, indent=2).encode() for row in ROWS),
        b"[\n" + b",\n".join(json.dumps(row).encode() for row in ROWS) + b",\n]",
        json.dumps(ROWS).encode("utf-16"),
        LINES.decode().encode("utf-16"),
    ],
    ids=[
        "lines", "byte-order mark, CRLF, blank lines", "array on one line", "array over lines",
        "below a key on one line", "below a key over lines", "objects over lines", "comma after the last",
        "array in UTF-16", "lines in UTF-16",
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows"])
def test_json_is_read_in_any_layout_and_under_any_name(tmp_path: Path, data: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(data)
    assert rows(tmp_path / name) == ROWS


@pytest.mark.parametrize("suffix", ["parquet", "feather", "stream", "csv", "tsv"])
@pytest.mark.parametrize("name", ["rows.txt", "rows"])
def test_tables_are_recognized_by_their_content(tmp_path: Path, suffix: str, name: str) -> None:
    (tmp_path / name).write_bytes(table_bytes(tmp_path / "made", suffix))
    assert rows(tmp_path / name) == ROWS


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("suffix", ["json", "parquet", "stream", "csv"])
def test_every_format_may_be_compressed(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    data = LINES if suffix == "json" else table_bytes(tmp_path / "made", suffix)
    (tmp_path / "rows.gz").write_bytes(pack(data))
    assert rows(tmp_path / "rows.gz") == ROWS


def test_bad_lines_have_a_reason_and_a_number_and_the_others_are_read(tmp_path: Path) -> None:
    bad = [
        b'{"a": "\xff"}', b'{"a": "\\ud83d"}', b'{"a": ', b"[1]", b"5", b"[" * 5000,
        b'{"a":' + b"[" * 986 + b"]" * 986 + b"}"
    ]  # fmt: skip
    (tmp_path / "a.jsonl").write_bytes(LINES + b"\n".join(bad) + b"\n" + LINES)
    assert rows(tmp_path / "a.jsonl").count(None) == len(bad)
    assert faults(tmp_path / "a.jsonl") == [
        (4, "not_utf8"), (5, "lone_surrogate"), (6, "not_json"), (7, "not_an_object"), (8, "not_an_object"),
        (9, "nested_too_deep"), (10, "nested_too_deep"),
    ]  # fmt: skip


def test_a_damaged_first_line_does_not_hide_the_others(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'tail of a row"}\n' + LINES)
    (tmp_path / "b.jsonl").write_bytes(b'{"a": "tor\n{"b": "n\n' + LINES)
    assert rows(tmp_path / "a.jsonl") == [None, *ROWS]
    assert rows(tmp_path / "b.jsonl") == [None, None, *ROWS]


def test_bad_elements_of_an_array_are_counted_and_unparsable_ones_end_it(tmp_path: Path) -> None:
    elements = [json.dumps(ROWS[0]), '{"a": "\udcff"}', '{"a": "\\ud83d"}', "7", json.dumps(ROWS[1])]
    text = "[" + ", ".join(elements)
    (tmp_path / "a.json").write_text(text + "]", errors="surrogateescape")
    assert faults(tmp_path / "a.json") == [(2, "not_utf8"), (3, "lone_surrogate"), (4, "not_an_object")]
    assert rows(tmp_path / "a.json")[-1] == ROWS[1]
    (tmp_path / "b.json").write_text(f"[{elements[0]}, {{torn}}, {elements[4]}]")
    assert faults(tmp_path / "b.json") == [(2, "not_json")]
    (tmp_path / "c.json").write_text(f"[{elements[0]}, {elements[4]}")
    assert faults(tmp_path / "c.json") == [(3, "cut_short")]


def test_a_bare_list_of_messages_is_one_conversation(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(CONVERSATION, indent=1))
    (tmp_path / "lines.jsonl").write_text((json.dumps(CONVERSATION) + "\n") * 2)
    (tmp_path / "array.json").write_text(json.dumps([CONVERSATION] * 2))
    assert rows(tmp_path / "one.json") == [{"messages": CONVERSATION}]
    assert rows(tmp_path / "lines.jsonl") == rows(tmp_path / "array.json") == [{"messages": CONVERSATION}] * 2


def test_malformed_rows_of_a_csv_file_are_counted_one_by_one(tmp_path: Path) -> None:
    text = (
        b'\xef\xbb\xbfprompt;completion\r\n"a, ""x""\nb";1\r\n\r\ncaf\xe9;2\r\nx;1;2\r\n"q"r;1\r\nlast;3\r\n"open;4\r\n'
    )
    (tmp_path / "a.csv").write_bytes(text)
    assert [row for row in rows(tmp_path / "a.csv") if row] == [
        {"prompt": 'a, "x"\nb', "completion": "1"}, {"prompt": "last", "completion": "3"},
    ]  # fmt: skip
    assert faults(tmp_path / "a.csv") == [(5, "not_utf8"), (6, "too_many_cells"), (7, "not_csv"), (9, "not_csv")]


def test_text_that_is_not_utf8_costs_a_table_one_row(tmp_path: Path) -> None:
    buffers = pa.array([b"fine", b"\xff", b"fine too"], pa.binary()).buffers()
    parquet.write_table(pa.table({"a": pa.Array.from_buffers(pa.string(), 3, buffers)}), tmp_path / "a.parquet")
    assert rows(tmp_path / "a.parquet") == [{"a": "fine"}, None, {"a": "fine too"}]


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress, bz2.compress, lzma.compress])
def test_a_truncated_file_gives_its_rows_and_one_reason(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    noise = "".join(json.dumps({"n": str(pow(3, n, 2**1000))}) + "\n" for n in range(4000)).encode()
    packed = pack(noise)
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) * 9 // 10])
    found = list(read(tmp_path / "a.jsonl.gz"))
    assert found[-1].reason == "cut_short"
    assert [record.number for record in found] == list(range(1, len(found) + 1))
    assert len(found) > 1000
    assert all(record.row for record in found[:-1])


@pytest.mark.parametrize("suffix", ["parquet", "feather", "stream"])
def test_a_truncated_table_is_one_reason(tmp_path: Path, suffix: str) -> None:
    data = table_bytes(tmp_path / "made", suffix)
    for name, packed in (("a", data[:-40]), ("a.gz", gzip.compress(data[:-40])), ("b.gz", gzip.compress(data)[:-40])):
        (tmp_path / name).write_bytes(packed)
        assert [reason for _, reason in faults(tmp_path / name)] == ["cut_short"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0\r", r"it begins with b'\x89PNG\r\n\x1a\n', like none of .arrow"),
        (b"PK\x03\x04\0\0", r"it begins with b'PK\x03\x04\x00\x00', like none of .arrow"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n", "run `git lfs pull`"),
        (b"Once upon a time", "neither JSON nor a table"),
    ],
)
def test_a_file_without_rows_is_reported(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "rows").write_bytes(data)
    [record] = read(tmp_path / "rows")
    assert record.reason == "unknown_format"
    assert said in record.detail
    assert record.where("rows") == "rows"


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    for data in (b"", b"\n \n", b"\xef\xbb\xbf", b"[]", gzip.compress(b"")):
        (tmp_path / "rows.json").write_bytes(data)
        assert rows(tmp_path / "rows.json") == []


def test_drops_list_the_most_common_reason_first_with_its_first_row() -> None:
    drops = Drops()
    drops.drop("empty_message", "a.jsonl, line 2")
    for line in (5, 9):
        drops.drop("not_utf8", f"a.jsonl, line {line}", "not UTF-8 (byte 3)")
    assert (
        drops.in_words()
        == "not_utf8 2 (first a.jsonl, line 5: not UTF-8 (byte 3)), empty_message 1 (first a.jsonl, line 2)"
    )
    assert Drops().in_words() == "nothing"


MEASURE = """
import resource, sys
from pathlib import Path
from cupola_platform.rows.reading import read
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(sum(record.row is not None for record in read(Path(sys.argv[1]))))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("layout", ["lines", "array", "parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, layout: str) -> None:
    path, row = tmp_path / "rows", json.dumps({"text": "x" * 1000})
    if layout == "parquet":
        table = pa.table({"text": ["x" * 1000] * 20_000})
        with parquet.ParquetWriter(path, table.schema, compression="none", use_dictionary=False) as writer:
            for _ in range(3):
                writer.write_table(table, row_group_size=2000)
    else:
        with path.open("w") as file:
            file.write("[" if layout == "array" else "")
            for _ in range(3):
                file.write((row + (",\n" if layout == "array" else "\n")) * 20_000)
            file.write("]" if layout == "array" else "")
    assert path.stat().st_size > 50 << 20
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    count, mebibytes = map(int, done.stdout.split())
    assert count == 60_000
    assert mebibytes < 25
