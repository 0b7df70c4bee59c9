"""Reading a job's `metrics.jsonl` while it grows: each point exactly once, despite interruptions and truncation."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from cupola_platform.artifacts.digests import digest_bytes

ROLLBACK = "rollback"
"""The event after which a job repeats steps on other samples."""

_TAIL = 512
"""Bytes before the cursor that must be unchanged; they are unique, because lines contain the time."""

_NOT_METRICS = {"event", "time", "step", "steps", "from_step", "world_size"}
_UNFIT = re.compile(r"[^\w\-./ ]")


@dataclass(frozen=True)
class Point:
    """One value of one metric."""

    key: str
    value: float
    timestamp: int
    """Milliseconds since 1970."""
    step: int


@dataclass(frozen=True)
class Cursor:
    """How far a file was read. Stored as JSON between processes."""

    offset: int = 0
    """Bytes read, to the end of a line."""
    tail: str = ""
    """Digest of the bytes before the offset, to detect a file that was truncated and grew again."""
    steps: Mapping[str, int] = field(default_factory=dict)
    """Last step read, by event."""
    skip: Mapping[str, int] = field(default_factory=dict)
    """Last step, by event, read before the file was truncated: a resumed job writes the same values again."""
    rollbacks: int = 0
    """Rollbacks read. Steps after a new one are sent again, since their values differ."""
    seen: int = 0
    """Rollbacks passed since reading last started over; they stay in the file."""


def read_points(path: Path, cursor: Cursor, limit: int) -> tuple[list[Point], Cursor]:
    """Up to `limit` points (at least one line) from the cursor on, and the cursor after them.

    Only complete lines are read; lines that are not JSON (their writer was killed) are skipped. If a resumed job
    truncated the file, reading starts over and skips the steps read before. Steps repeated after a rollback have new
    values, so they are read again, with later timestamps.
    """
    points: list[Point] = []
    with path.open("rb") as file:
        if _tail(file, cursor.offset) != cursor.tail:
            cursor = Cursor(steps=cursor.steps, skip=cursor.steps, rollbacks=cursor.rollbacks)
        file.seek(cursor.offset)
        offset, steps, skip = cursor.offset, dict(cursor.steps), dict(cursor.skip)
        rollbacks, seen = cursor.rollbacks, cursor.seen
        for line in file:
            event, step, new = _parse(line)
            if seen < rollbacks if event == ROLLBACK else step <= skip.get(event, -1):
                new = []  # read before
            if not line.endswith(b"\n") or (points and len(points) + len(new) > limit):
                break
            if event == ROLLBACK:
                seen += 1
                if seen > rollbacks:
                    rollbacks = seen
                    steps, skip = ({name: min(last, step) for name, last in known.items()} for known in (steps, skip))
            points += new
            offset += len(line)
            steps[event] = max(step, steps.get(event, -1))
        return points, Cursor(offset, _tail(file, offset), steps, skip, rollbacks, seen)


def _tail(file: BinaryIO, offset: int) -> str:
    if offset == 0:
        return ""
    file.seek(max(0, offset - _TAIL))
    return digest_bytes(file.read(min(_TAIL, offset)))


def _parse(line: bytes) -> tuple[str, int, list[Point]]:
    """A line's event, step and metrics; the metrics are all numbers that do not describe the line itself."""
    try:
        row = json.loads(line)
        event, step, timestamp = str(row["event"]), int(row["step"]), int(row["time"] * 1000)
    except (ValueError, KeyError, TypeError):
        return "", -1, []
    if event == "start":
        return event, -1, []
    return event, step, [
        Point(_UNFIT.sub("_", key), float(value), timestamp, step)
        for key, value in row.items()
        if key not in _NOT_METRICS and isinstance(value, int | float) and not isinstance(value, bool)
    ]  # fmt: skip
