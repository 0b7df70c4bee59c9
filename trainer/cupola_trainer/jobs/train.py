"""Run a TrainJob: train from the newest checkpoint to the last step, or until the process is terminated."""

from collections.abc import Callable

from cupola_trainer.config import TrainJob
from cupola_trainer.training.loop import train


def run(job: TrainJob, terminated: Callable[[], bool]) -> bool:
    """Train, and return whether the job is complete: see `loop.train`."""
    complete: bool = train(job, terminated)
    return complete
