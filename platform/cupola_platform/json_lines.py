"""JSON lines: the project's only reader and writer.

Lines end at "\\n" only. `str.splitlines` would also split at U+2028, U+2029 and U+0085, which JSON allows inside
strings. A byte-order mark, CRLF and blank lines are accepted.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cupola_platform.durable import replacing
from cupola_platform.errors import ConfigError

Row = dict[str, Any]

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class BadLineError(ValueError):
    """A line that is not one JSON object of valid text. `reason` is the key to count it by."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def numbered(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line) for each non-blank line, without byte-order mark and line end.

    `lines` are split at "\\n": a binary file, or anything that iterates like one.
    """
    for number, line in enumerate(lines, start=1):
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if line := line.strip(b" \t\r\n"):
            yield number, line


def parse_value(line: bytes) -> Any:
    """The JSON value on one line.

    Raises:
        BadLineError: not UTF-8 ("not_utf8"), not JSON ("not_json") or nested too deep to read ("nested_too_deep").
    """
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise BadLineError("not_utf8", f"not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise BadLineError("nested_too_deep", "nested too deep") from None
    except ValueError as error:
        raise BadLineError("not_json", f"not JSON ({error})") from None


def parse(line: bytes) -> Row:
    """The JSON object on one line.

    Raises:
        BadLineError: as `parse_value` and `check_row`.
    """
    return check_row(parse_value(line))


def check_row(value: object) -> Row:
    """A JSON value, checked to be an object of valid text.

    Raises:
        BadLineError: not an object ("not_an_object"), half of a surrogate pair in a string ("lone_surrogate"), or
            nested too deep to write ("nested_too_deep").
    """
    if not isinstance(value, dict):
        raise BadLineError("not_an_object", f"not a JSON object but {type(value).__name__}")
    try:
        if has_lone_surrogate(value):
            raise BadLineError("lone_surrogate", "half of a surrogate pair (\\ud800 to \\udfff) in a string")
    except RecursionError:
        raise BadLineError("nested_too_deep", "nested too deep") from None
    return value


def has_lone_surrogate(value: object) -> bool:
    """Whether a string in the JSON-like `value` contains half of a surrogate pair, which neither UTF-8 nor a tokenizer
    accepts."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return True
    return False


def read(path: Path) -> Iterator[Row]:
    """The objects of a file that Cupola wrote or that must be valid. Raises as `read_numbered` does."""
    return (row for _, row in read_numbered(path))


def read_numbered(path: Path) -> Iterator[tuple[int, Row]]:
    """(line number from 1, object) for each line of a file that must be valid.

    Raises:
        ConfigError: the file does not exist, or a line is not a JSON object; names the file and the line.
    """
    if not path.is_file():
        raise ConfigError(f"{path} does not exist. Give the folder of an artifact of the right kind.")
    with path.open("rb") as lines:
        for number, line in numbered(lines):
            try:
                yield number, parse(line)
            except BadLineError as error:
                raise ConfigError(f"{path}, line {number}: {error}. Fix or remove the line.") from None


def whole_lines(path: Path) -> list[bytes]:
    """The complete lines, with their ends, of a file that may still be written or whose writer was killed."""
    if not path.exists():
        return []
    with path.open("rb") as lines:
        return [line for line in lines if line.endswith(b"\n")]


def dump(row: Mapping[str, Any]) -> bytes:
    """One line. Half of a surrogate pair stays a JSON escape, so that the line is valid UTF-8."""
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines in UTF-8, atomically."""
    with replacing(path) as file:
        file.writelines(map(dump, rows))
