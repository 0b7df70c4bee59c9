"""Starts after the first one: what a failed start leaves behind, and whether another one helps."""

import json
import time
from contextlib import suppress
from pathlib import Path

from cupola_platform.json_lines import whole_lines
from cupola_platform.launch.handle import STOP

HANG_REPORT = "hang.json"
"""In a job's folder, by a rank that noticed that the job hangs."""
HEARTBEATS = "heartbeats"
"""In a job's folder: a file per rank that shows that it lives."""


def is_done(folder: Path) -> bool:
    """Whether the job's result is there, which is written last."""
    return (folder / "result.json").exists()


def is_final(folder: Path) -> bool:
    """Whether another start would change nothing: the job is done, it reported an error, or it was stopped."""
    return is_done(folder) or any((folder / name).exists() for name in ("error.json", STOP))


def hang_of(folder: Path) -> str | None:
    """Why a job hung, as one of its ranks reported it; None if none did."""
    try:
        return str(json.loads((folder / HANG_REPORT).read_bytes())["reason"])
    except (OSError, ValueError, KeyError):
        return None


def clear(folder: Path) -> None:
    """Remove the hang report and heartbeats of an earlier start, which the next one would take for its own."""
    (folder / HANG_REPORT).unlink(missing_ok=True)
    for heartbeat in (folder / HEARTBEATS).glob("rank_*.json"):
        heartbeat.unlink(missing_ok=True)


def note(folder: Path, *, attempt: int, of: int, reason: str) -> None:
    """Append a restart to the job's metrics, where later starts keep it."""
    path = folder / "metrics.jsonl"
    step = 0
    for written in whole_lines(path):
        with suppress(ValueError):  # after a power cut, lines may be zeros
            step = max(step, json.loads(written).get("step", 0))
    line = {"event": "restart", "time": time.time(), "step": step, "attempt": attempt, "of": of, "reason": reason}
    with suppress(OSError), path.open("a") as file:  # a full disk loses the line, not the job
        file.write(json.dumps(line) + "\n")
