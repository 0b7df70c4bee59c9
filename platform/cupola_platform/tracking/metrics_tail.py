"""Reading a job's `metrics.jsonl` while it grows: each point once, whatever is cut short in between."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from cupola_platform.artifacts.digests import digest_bytes

ROLLBACK = "rollback"
"""The event after which a job's steps are redone on other samples."""

_TAIL = 512
"""Bytes before the cursor that must be what they were; a line's time makes them unique."""

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
    """How far a file was read. Kept as JSON between processes."""

    offset: int = 0
    """Bytes read, to the end of a line."""
    tail: str = ""
    """Digest of the bytes before the offset: tells a file that was cut and grew again."""
    steps: Mapping[str, int] = field(default_factory=dict)
    """Last step read, by event."""
    skip: Mapping[str, int] = field(default_factory=dict)
    """Last step, by event, that was read before the file was cut: a resumed job writes the same values again."""
    rollbacks: int = 0
    """Rollbacks read; what follows a new one is told although its steps were told before."""
    seen: int = 0
    """Rollbacks passed since the file was last begun: they stay in it."""


def read_points(path: Path, cursor: Cursor, limit: int) -> tuple[list[Point], Cursor]:
    """Points from the cursor on, at most `limit` (at least one line), and the cursor behind them.

    Only whole lines are read; a line that is not JSON (a writer was killed in it) is passed over. When a resumed job
    has cut the file, reading starts over and leaves out the steps that were read before. The steps that are redone
    after a rollback have other values: they are read again, with later timestamps.
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
                new = []  # told before
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
    """A line's event, its step, and its metrics: every number that is not about the line itself."""
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
