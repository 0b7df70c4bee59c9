"""The jobs of clusters that a run's work folder knows, whoever started them."""

import threading
from pathlib import Path

from cupola_platform.errors import CupolaError, ServiceError
from cupola_platform.launch import handle
from cupola_platform.launch.interface import RunningJob
from cupola_platform.launch.launcher import make_launcher
from cupola_platform.settings import Settings

PATIENCE = 15.0
"""Seconds for a cluster's engine to answer whether a job lives."""


def living_job(settings: Settings, work_folder: Path, patience: float = PATIENCE) -> RunningJob | None:
    """The job of a cluster that still works in a run's work folder, waiting or running; None if there is none.

    Jobs have folders of their own inside the work folder, such as `job` or `round1/run2`.

    Raises:
        ServiceError: an engine does not answer within `patience` seconds, or this machine cannot ask it, so that
            nobody knows.
    """
    unknown: ServiceError | None = None
    for file in _handles(work_folder):
        try:
            if job := _attached(settings, file.parent, patience):
                return job
        except ServiceError as error:
            unknown = error
    if unknown:
        raise unknown
    return None


def forget_jobs(work_folder: Path) -> None:
    """Forget the jobs of a run's work folder, once they have ended: their cluster need not be named any more."""
    for file in _handles(work_folder):
        file.unlink(missing_ok=True)


def _handles(work_folder: Path) -> list[Path]:
    return [file for depth in ("", "*/", "*/*/") for file in work_folder.glob(f"{depth}{handle.FILE}")]


def _attached(settings: Settings, folder: Path, patience: float) -> RunningJob | None:
    """Ask the engine in a thread, since a launcher may ask a silent engine for minutes."""
    known = handle.read(folder)
    if known is None:
        return None
    answers: list[RunningJob | CupolaError | None] = []

    def ask() -> None:
        try:
            answers.append(make_launcher(settings, known.cluster).attach(folder / "job.json"))
        except CupolaError as error:
            answers.append(error)

    asking = threading.Thread(target=ask, name=f"job {known.id}", daemon=True)
    asking.start()
    asking.join(patience)
    answer = answers[0] if answers else ServiceError(f"no answer within {patience:.0f} s")
    if isinstance(answer, CupolaError):
        raise ServiceError(f"Cluster {known.cluster} does not say whether job {known.id} lives: {answer}") from None
    return answer
