"""`result.json`: a job's result, written when it is done."""

import json
from pathlib import Path
from typing import Any

from cupola_platform.durable import sync_file_system, write_text
from cupola_trainer.reporting.metrics import read_metrics


def train_results(path: Path) -> dict[str, float]:
    """Summary of a finished training job: first and last held-out means, final loss, seconds of work."""
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
    """Seconds from each start to the last line before the next one, excluding time between interruption and
    resumption."""
    starts = [i for i, line in enumerate(lines) if line["event"] == "start"]
    ends = [*(i - 1 for i in starts[1:]), len(lines) - 1]
    return float(sum(lines[end]["time"] - lines[start]["time"] for start, end in zip(starts, ends, strict=True)))


def write_result(output: Path, result: dict[str, object]) -> None:
    """Sync the output, then write result.json atomically, which marks the job as complete."""
    sync_file_system(output)
    write_text(output / "result.json", json.dumps(result, indent=2))
