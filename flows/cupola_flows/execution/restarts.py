"""Detection of jobs that hang or crash, and bounded restarts from their newest checkpoint."""

from dataclasses import dataclass

from cupola_platform.errors import StageFailedError
from cupola_platform.launch import starts
from cupola_trainer.config import TrainJob
from cupola_trainer.training.watchdog import FOLDER, Listener

SLACK = 15.0
"""Seconds beyond the ranks' own timeout, which fires first unless all ranks have stopped."""
TO_END = 60.0
"""Seconds for ranks that noticed a hang to exit."""


class CrashedError(StageFailedError):
    """A job's processes ended without an error message; a restart may help."""


@dataclass
class Starts:
    """Number of starts of a job in one run of its stage: by the stage after a hang, or by Prefect after a crash."""

    allowed: int
    done: int = 0

    @property
    def left(self) -> int:
        return self.allowed - self.done


def hang_of(job: object) -> str | None:
    """Why a job hung, in words; None if it did not."""
    return starts.hang_of(job.output) if isinstance(job, TrainJob) else None


class Follower:
    """Watches the heartbeats of one start of a job."""

    def __init__(self, job: object) -> None:
        self.job = job if isinstance(job, TrainJob) and job.faults.hang_seconds else None
        self.listener = Listener(self.job.output / FOLDER) if self.job else None

    def silence(self) -> str | None:
        """A message if no rank responds any more; None if one does or none has begun to train. Call it often."""
        if self.job is None or self.listener is None:
            return None
        self.listener.listen()
        limit = self.job.faults.hang_seconds + (SLACK if hang_of(self.job) is None else TO_END)
        return f"no rank has responded for {limit:.0f} s" if self.listener.all_silent(limit) else None


def record(job: TrainJob, attempt: int, reason: str) -> None:
    """Append the restart to the job's metrics, where later starts keep it."""
    starts.note(job.output, attempt=attempt, of=job.faults.max_restarts, reason=reason)
