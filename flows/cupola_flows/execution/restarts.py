"""Jobs that hang or crash: noticed, ended, told of, and started again from their newest checkpoint,
a bounded number of times."""

import json
from dataclasses import dataclass
from pathlib import Path

from cupola_platform.errors import StageFailedError
from cupola_trainer.config import TrainJob
from cupola_trainer.reporting.metrics import append, read_metrics
from cupola_trainer.training.watchdog import FOLDER, REPORT, Listener

SLACK = 15.0
"""Seconds beyond the ranks' own time-out: they notice first, unless all of them have stopped."""
TO_END = 60.0
"""Seconds that ranks which noticed have to end."""


class CrashedError(StageFailedError):
    """A job's processes ended and said nothing: started again, it may get past that point."""


@dataclass
class Starts:
    """How often a job may be started in one run of its stage, whoever starts it again: the stage itself, after a hang,
    or Prefect, after a crash."""

    allowed: int
    done: int = 0

    @property
    def left(self) -> int:
        return self.allowed - self.done


def hang_of(job: object) -> str | None:
    """Why a job that ended hung, in words; none when it did not."""
    if not isinstance(job, TrainJob):
        return None
    try:
        return str(json.loads((job.output / REPORT).read_bytes())["reason"])
    except (OSError, ValueError, KeyError):
        return None


class Follower:
    """Listens to the heartbeats of one start of a job."""

    def __init__(self, job: object) -> None:
        self.job = job if isinstance(job, TrainJob) and job.faults.hang_seconds else None
        self.listener = Listener(self.job.output / FOLDER) if self.job else None

    def silence(self) -> str | None:
        """That no rank answers any more, in words; none when one does, or when none has begun to train.
        To be asked often."""
        if self.job is None or self.listener is None:
            return None
        self.listener.listen()
        limit = self.job.faults.hang_seconds + (SLACK if hang_of(self.job) is None else TO_END)
        return f"no rank has answered for {limit:.0f} s" if self.listener.all_silent(limit) else None


def clear(output: Path) -> None:
    """Forget what an earlier start left."""
    (output / REPORT).unlink(missing_ok=True)
    for path in (output / FOLDER).glob("rank_*.json"):
        path.unlink(missing_ok=True)


def record(job: TrainJob, attempt: int, reason: str) -> None:
    """Put the restart into metrics.jsonl, where no later start removes it."""
    path = job.output / "metrics.jsonl"
    step = max((line["step"] for line in read_metrics(path) if "step" in line), default=0)
    append(path, "restart", step=step, attempt=attempt, of=job.faults.max_restarts, reason=reason)
