"""JSON lines are split at newlines only, and every unusable line has a reason."""

import io
from pathlib import Path

import pytest

from cupola_platform import json_lines
from cupola_platform.errors import ConfigError

SEPARATORS = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\x1dh\x1ei\r\nj"


def test_rows_are_read_back_whatever_separators_their_strings_contain(tmp_path: Path) -> None:
    rows: list[json_lines.Row] = [{"text": SEPARATORS}, {"text": "plain", SEPARATORS: [1, None, {"deep": SEPARATORS}]}]
    json_lines.write(tmp_path / "rows.jsonl", rows)
    assert list(json_lines.read(tmp_path / "rows.jsonl")) == rows
    assert (tmp_path / "rows.jsonl").read_bytes().count(b"\n") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_byte_order_mark_crlf_and_blank_lines_are_accepted() -> None:
    file = io.BytesIO(b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}')
    assert list(json_lines.numbered(file)) == [(1, b'{"a": 1}'), (4, b'{"a": 2}')]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": "\xff"}', "not_utf8"),
        (b'{"a": "\xed\xa0\x80"}', "not_utf8"),  # a surrogate written as bytes
        (b'{"a": ', "not_json"),
        (b"[1]", "not_an_object"),
        (b'{"a": {"b": ["\\ud83d"]}}', "lone_surrogate"),
        (b'{"\\udc00": 1}', "lone_surrogate"),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested_too_deep"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not_json"),  # more digits than Python parses
    ],
    ids=["bytes", "surrogate bytes", "cut short", "array", "half an emoji", "half in a key", "deep", "long number"],
)
def test_an_unusable_line_has_a_reason(line: bytes, reason: str) -> None:
    with pytest.raises(json_lines.BadLineError) as raised:
        json_lines.parse(line)
    assert raised.value.reason == reason
    assert len(str(raised.value).splitlines()) == 1


def test_a_complete_surrogate_pair_is_one_character() -> None:
    assert json_lines.parse(b'{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}


def test_half_a_surrogate_pair_is_written_as_an_escape() -> None:
    assert json_lines.dump({"a": "x\ud83d"}) == b'{"a": "x\\ud83d"}\n'


def test_a_broken_line_of_our_own_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": 1}\n{"a": \n')
    with pytest.raises(ConfigError, match=r"rows\.jsonl, line 2: not JSON"):
        list(json_lines.read(tmp_path / "rows.jsonl"))
    with pytest.raises(ConfigError, match="does not exist"):
        list(json_lines.read(tmp_path / "none.jsonl"))


def test_an_incomplete_last_line_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes('{"a": "\u2028"}\n{"a": 2}\n{"a"'.encode())
    assert json_lines.whole_lines(tmp_path / "rows.jsonl") == ['{"a": "\u2028"}\n'.encode(), b'{"a": 2}\n']
    assert json_lines.whole_lines(tmp_path / "none.jsonl") == []
