"""A TrainJob: trained from its newest checkpoint to its last step, or until the process is asked to end."""

from collections.abc import Callable

from cupola_trainer.config import TrainJob
from cupola_trainer.training.loop import train


def run(job: TrainJob, terminated: Callable[[], bool]) -> bool:
    """Whether the job is complete: see `loop.train`."""
    complete: bool = train(job, terminated)
    return complete
