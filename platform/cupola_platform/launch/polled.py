"""What jobs on clusters have in common: an engine runs them, and is asked about them."""

import time
from abc import ABC, abstractmethod
from typing import Self

from cupola_platform.launch.local import GRACE_SECONDS

LOOK_EVERY = 0.5
"""Seconds between two calls of `poll` while waiting; `poll` asks the engine less often."""


class PolledJob(ABC):
    """A job that goes on when this process ends. As a context manager it stops the job on the way out."""

    outlives = True

    @abstractmethod
    def poll(self) -> int | None:
        """The job's exit status once it has ended, else None."""

    @abstractmethod
    def stop(self, grace_seconds: float = GRACE_SECONDS) -> int:
        """Ask the ranks to save and exit; kill what is left after `grace_seconds`. Returns the exit status."""

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait up to `timeout` seconds (None: until the job ends), then `poll`."""
        until = float("inf") if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None and time.monotonic() < until:
            time.sleep(min(LOOK_EVERY, max(0.0, until - time.monotonic())))
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.poll() is None:
            self.stop()
