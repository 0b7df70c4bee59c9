"""Starts after the first one, by a job's engine: what a failed start leaves behind, and whether another one helps."""

import json
import time
from contextlib import suppress
from pathlib import Path

from cupola_platform.json_lines import numbered
from cupola_platform.launch.handle import STOP

HANG_REPORT = "hang.json"
"""In a job's folder, by a rank that noticed that the job hangs."""


def is_final(folder: Path) -> bool:
    """Whether another start would change nothing: the job is done, it reported an error, or it was stopped."""
    return any((folder / name).exists() for name in ("result.json", "error.json", STOP))


def clear(folder: Path, otherwise: str) -> str:
    """Remove what a failed start left and the next one would take for its own. Returns why it failed: the hang that a
    rank reported, or `otherwise`."""
    report = folder / HANG_REPORT
    with suppress(OSError, ValueError, KeyError):
        otherwise = str(json.loads(report.read_bytes())["reason"])
    report.unlink(missing_ok=True)
    for heartbeat in (folder / "heartbeats").glob("rank_*.json"):
        heartbeat.unlink(missing_ok=True)
    return otherwise


def note(folder: Path, *, attempt: int, of: int, reason: str) -> None:
    """Append a restart to the job's metrics, as a launcher does that watches its jobs itself."""
    path = folder / "metrics.jsonl"
    try:
        lines = [json.loads(line) for _, line in numbered(path.read_bytes().split(b"\n"))]
    except (FileNotFoundError, ValueError):
        lines = []
    line = {
        "event": "restart", "time": time.time(), "step": max((line.get("step", 0) for line in lines), default=0),
        "attempt": attempt, "of": of, "reason": reason,
    }  # fmt: skip
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
