"""Detects the loss of Prefect's server, so that a run stops waiting for it. Importing this imports Prefect."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.settings.context import get_current_settings

from cupola_flows.runs.session import Session
from cupola_flows.servers.processes import answers

EVERY = 2.0
"""Seconds between health checks."""
MISSED = 3
"""Failed health checks in a row before the server counts as lost; it may just be busy."""


@contextmanager
def server_watched(session: Session) -> Iterator[None]:
    """Poll the server's health while the block runs. Once it is lost, turn off the retries of Prefect's client, which
    would repeat each of a run's dozen calls for 15 seconds."""
    done = threading.Event()
    settings = get_current_settings()  # this thread's settings; a new thread has its own

    def watch() -> None:
        missed = 0
        while not done.wait(EVERY):
            missed = 0 if answers(f"{settings.api.url}/health") else missed + 1
            if missed == MISSED:
                settings.client.max_retries = 0
                session.lose_prefect("no response")

    watcher = threading.Thread(target=watch, name="prefect's server", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
