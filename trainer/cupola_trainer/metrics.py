"""`metrics.jsonl`: what a job reports while it runs, one JSON object a line, each step once."""

import json
import math
import time
from pathlib import Path
from typing import Any, TextIO


class MetricsWriter:
    """Appends events to a job's metrics.jsonl and flushes each line. Only rank 0 makes one that writes."""

    def __init__(self, path: Path | None) -> None:
        """`path` is none on ranks that do not write."""
        self.path = path
        self._file: TextIO | None = None

    def open(self, resumed_step: int) -> None:
        """Begin or resume: lines past `resumed_step`, and all lines of a job that starts over, are dropped."""
        if self.path is None:
            return
        kept = [line for line in _whole_lines(self.path) if _survives(json.loads(line), resumed_step)]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.partial")
        temporary.write_text("".join(f"{line}\n" for line in kept))
        temporary.replace(self.path)
        self._file = self.path.open("a")

    def write(self, event: str, **values: Any) -> None:
        """Append one event. Numbers keep their exact value; one that is not finite becomes null."""
        if self._file is None:
            return
        line = {"event": event, "time": time.time(), **{name: _plain(value) for name, value in values.items()}}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        if self._file:
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a metrics.jsonl, in order; a line that is still being written is left out."""
    return [json.loads(line) for line in _whole_lines(path)]


def _whole_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    return [line.rstrip("\n") for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _survives(line: dict[str, Any], resumed_step: int) -> bool:
    return bool(line["event"] == "start" or 0 < resumed_step >= line["step"])


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def train_results(path: Path) -> dict[str, float]:
    """What a finished training job's metrics come to: first and last held-out means, last loss, seconds at work."""
    lines = read_metrics(path)
    results: dict[str, float] = {"seconds": _seconds_at_work(lines)}
    evaluations = [line for line in lines if line["event"] == "evaluate"]
    for when, line in [("initial", evaluations[0]), ("final", evaluations[-1])] if evaluations else []:
        results |= {f"{when}_{name}": value for name, value in line.items() if name.startswith("heldout_")}
    steps = [line for line in lines if line["event"] == "step"]
    if steps:
        results["final_loss"] = steps[-1]["loss"]
    return {name: value for name, value in results.items() if value is not None}


def _seconds_at_work(lines: list[dict[str, Any]]) -> float:
    """From each start to the last line before the next one: time between an interruption and a resumption is left out."""
    starts = [i for i, line in enumerate(lines) if line["event"] == "start"]
    ends = [*(i - 1 for i in starts[1:]), len(lines) - 1]
    return float(sum(lines[end]["time"] - lines[start]["time"] for start, end in zip(starts, ends, strict=True)))
