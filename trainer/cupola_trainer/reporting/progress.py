"""Reports of jobs that do not train: metrics.jsonl while running, result.json when done."""

import signal
import sys
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from cupola_trainer import runtime
from cupola_trainer.reporting.metrics import MetricsWriter
from cupola_trainer.reporting.results import write_result

PREEMPTED = 128 + signal.SIGTERM


class Report:
    """Reports a job that takes seconds or minutes and starts over after an interruption.

    SIGTERM ends the job immediately, with "preempted" in metrics.jsonl and exit status 143.
    """

    def __init__(self, output: Path, *, kind: str, steps: int, parameters: int) -> None:
        """Call `runtime.start` first. Steps are prompts or checkpoints."""
        self.output = output
        self.first = runtime.rank() == 0
        self.metrics = MetricsWriter(output / "metrics.jsonl" if self.first else None)
        self.start = {"kind": kind, "step": 0, "steps": steps, "parameters": parameters}
        self.at = 0

    def __enter__(self) -> Self:
        self.handler = signal.signal(signal.SIGTERM, _end)
        self.metrics.open(resumed_step=0)
        self.metrics.write("start", **self.start, world_size=runtime.world_size())
        return self

    def step(self, step: int, **values: object) -> None:
        """Report progress."""
        self.at = step
        self.metrics.write("step", step=step, **values)

    def complete(self, folder: str, metrics: dict[str, float]) -> None:
        """Report completion. `folder`, relative to the job's, is the output to publish."""
        self.metrics.write("end", step=self.at, status="completed")
        if self.first:
            write_result(self.output, {"folder": folder, "metrics": metrics})

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, SystemExit):
            self.metrics.write("end", step=self.at, status="preempted")
        self.metrics.close()
        signal.signal(signal.SIGTERM, self.handler)


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(PREEMPTED)
