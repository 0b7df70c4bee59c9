"""Notices that Prefect's server has gone, so that a run waits for it no more. Importing this imports Prefect."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.settings.context import get_current_settings

from cupola_flows.runs.session import Session
from cupola_flows.servers.processes import answers

EVERY = 2.0
"""Seconds between two looks."""
MISSED = 3
"""Looks in a row without an answer: a server may be busy."""


@contextmanager
def server_watched(session: Session) -> Iterator[None]:
    """Ask the server for signs of life. Once it has gone, Prefect's client tries nothing twice: each of a run's dozen
    calls would be tried again for a quarter of a minute."""
    done = threading.Event()
    settings = get_current_settings()  # this thread's: a thread of its own has others

    def watch() -> None:
        missed = 0
        while not done.wait(EVERY):
            missed = 0 if answers(f"{settings.api.url}/health") else missed + 1
            if missed == MISSED:
                settings.client.max_retries = 0
                session.lose_prefect("no answer")

    watcher = threading.Thread(target=watch, name="prefect's server", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
