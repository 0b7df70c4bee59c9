"""Lock files that are waited for."""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LOOK_EVERY = 0.5


@contextmanager
def alone(path: Path, waits: Callable[[], None]) -> Iterator[None]:
    """Hold `path` plus `.lock` while the block runs, against other processes and threads of this machine.

    Args:
        waits: called once if another holds it, before waiting for it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        waited = False
        while not _locked(lock.fileno()):
            if not waited:
                waits()
            waited = True
            time.sleep(LOOK_EVERY)  # a blocking lock could not be interrupted
        yield


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
