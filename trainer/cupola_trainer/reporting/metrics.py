"""`metrics.jsonl`: a running job's events, one JSON object per line, each step once."""

import json
import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from cupola_platform.durable import replacing
from cupola_platform.json_lines import whole_lines

log = logging.getLogger(__name__)

ALWAYS_KEPT = ("start", "restart", "rollback")
"""Events that record interruptions, kept when a job resumes or rolls back."""


class MetricsWriter:
    """Appends events to a JSON lines file, unbuffered.

    A full disk loses lines but never stops the job: a line is written completely or not at all.
    """

    def __init__(self, path: Path | None) -> None:
        """`path` is None on ranks that do not write."""
        self.path = path
        self.lost = 0
        """Lines that could not be written."""
        self._file: BinaryIO | None = None

    def open(self, resumed_step: int) -> None:
        """Open the file to start, resume or roll back, see `trim`."""
        if self.path is None:
            return
        self.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        trim(self.path, resumed_step)
        self.reopen()

    def reopen(self) -> None:
        """Open the file for appending, keeping all lines."""
        assert self.path
        self._file = self.path.open("ab", buffering=0)

    def write(self, event: str, **values: Any) -> None:
        """Append one event. Numbers are exact; non-finite ones become null."""
        if self._file is None:
            return
        line = {"event": event, "time": time.time(), **{name: _plain(value) for name, value in values.items()}}
        block = (json.dumps(line, allow_nan=False) + "\n").encode()
        end = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(block) == len(block):
                return
        except OSError:
            pass
        os.ftruncate(self._file.fileno(), end)
        self.lost += 1
        if self.lost == 1:
            log.error("%s cannot be written: the disk is full. Lines are lost until there is space.", self.path)

    def close(self) -> None:
        if self._file:
            self._file.close()
            self._file = None


def append(path: Path, event: str, **values: Any) -> None:
    """Append one event to the file of a job that is not running."""
    writer = MetricsWriter(path)
    writer.reopen()
    writer.write(event, **values)
    writer.close()


def trim(path: Path, resumed_step: int) -> None:
    """Drop lines after `resumed_step` (all if it is 0), except those that record interruptions."""
    kept = [line for line, event in _events(path) if _survives(event, resumed_step)]
    with replacing(path) as file:
        file.writelines(kept)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every complete line of a metrics.jsonl, in order."""
    return [event for _, event in _events(path)]


def _events(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Lines and their events, skipping lines that a power failure zeroed."""
    for line in whole_lines(path):
        with suppress(ValueError):
            yield line, json.loads(line)


def _survives(line: dict[str, Any], resumed_step: int) -> bool:
    return bool(line["event"] in ALWAYS_KEPT or 0 < resumed_step >= line["step"])


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
