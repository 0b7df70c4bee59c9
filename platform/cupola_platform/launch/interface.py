"""What every launcher does, and every job that it started."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self

from cupola_platform.launch.capacity import Capacity
from cupola_platform.launch.local import GRACE_SECONDS


class RunningJob(Protocol):
    """A job that was started. As a context manager it stops the job on the way out."""

    @property
    def outlives(self) -> bool:
        """Whether the job goes on when the process that started it ends."""
        ...

    @property
    def name(self) -> str:
        """As a person would look for it."""
        ...

    def waits(self) -> str | None:
        """Why the job has not started yet, in the engine's words; None once it has."""
        ...

    def reason(self) -> str | None:
        """Why the job's engine ended it, in words; None if it ended by itself or still runs."""
        ...

    def poll(self) -> int | None:
        """The job's exit status once all its ranks have ended, else None. Any failed rank makes it nonzero."""
        ...

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait up to `timeout` seconds (None: until the job ends), then `poll`."""
        ...

    def stop(self, grace_seconds: float = GRACE_SECONDS) -> int:
        """Ask the ranks to save and exit; kill what is left after `grace_seconds`. Returns the exit status."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class Launcher(Protocol):
    """Starts jobs somewhere. A job does not know where it runs."""

    def check(self, processes: int) -> None:
        """Refuse a job that is too large. Raises ConfigError with the number asked for and the limit."""
        ...

    def start(
        self, job_file: Path, *, processes: int, log: Path, env: Mapping[str, str] | None = None,
        fallbacks: Sequence[tuple[Path, int]] = (), restarts: int = 0,
    ) -> RunningJob:  # fmt: skip
        """Start `processes` ranks of the job in `job_file`; their output is appended to `log`.

        Args:
            env: environment variables for the ranks, over those of this process.
            fallbacks: the same job in other layouts, as (job file, processes): the first that fits runs where fewer
                nodes are left than the job wants. A launcher of one machine needs none.
            restarts: how often the engine itself may start the job again after a node is lost or a rank fails. A
                launcher whose jobs end with this process leaves that to it.

        Raises:
            ConfigError: the job is too large, or the log cannot be written.
        """
        ...

    def attach(self, job_file: Path) -> RunningJob | None:
        """The running job that was started for this file earlier, by whichever process; None if there is none."""
        ...

    def capacity(self) -> Capacity:
        """What could start now. Raises ServiceError if the engine does not answer, ConfigError if it refuses."""
        ...
