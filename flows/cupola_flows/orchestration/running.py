"""Runs a session without Prefect, or under a Prefect server that is running or started for it."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx

from cupola_flows.orchestration.sharing import share_places
from cupola_flows.runs.scheduling import run_stages
from cupola_flows.runs.session import Session
from cupola_flows.servers.prefect_api import PrefectApi, own_prefect
from cupola_flows.servers.services import find_prefect
from cupola_flows.servers.sweeping import OWN_SERVER_TAG, Sweeper, process_tag

QUIET = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_INTERNAL_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_CLIENT_MAX_RETRIES": "3",
}
"""Keeps Prefect's log off a terminal that shows progress, and retries a lost server only briefly."""
ASK_EVERY = 3.0
"""Seconds between checks whether the run was cancelled on the server."""


def run_plain(session: Session) -> None:
    """Run a session without Prefect."""
    with session.recorded(None):
        run_stages(session, session.execute)


def run_under_prefect(session: Session) -> None:
    """Run a session as Prefect flows.

    Losing the server does not affect the run; `session.error` says why it ended early.
    """
    settings = session.workspace.settings
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    with _server(session) as api:
        _sweep(session, api)
        share_places(session, api)
        from prefect import tags
        from prefect.logging.handlers import APILogWorker

        from cupola_flows.orchestration.flows import OPENED, SERVER_IS_GONE, lifecycle

        marks = [process_tag()] if find_prefect(settings) == api else [process_tag(), OWN_SERVER_TAG]
        with _cancelled_from_the_server(session, api), tags(*marks):
            opened = OPENED.set(session)
            try:
                lifecycle(
                    recipe=session.recipe.name,
                    overrides=list(session.overrides),
                    only=list(session.names),
                    workspace=settings.home,
                    return_state=True,
                )
            except SERVER_IS_GONE as error:
                session.lose_prefect(type(error).__name__)
            finally:
                OPENED.reset(opened)
            if not session.prefect_is_gone.is_set():
                APILogWorker.drain_all(timeout=5)  # before its server stops
    if session.error:
        raise session.error
    if not session.complete:
        run_plain(session)


@contextmanager
def _server(session: Session) -> Iterator[PrefectApi]:
    """A running Prefect server, or a new one for this run, which starts while Prefect is imported."""
    settings = session.workspace.settings
    known = find_prefect(settings)
    if known:
        os.environ.update(known.environment(settings))
        yield known
        return
    session.display.say("Starting a Prefect server for this run (the first start creates its database).")
    with own_prefect(settings) as server:
        os.environ.update(server.api.environment(settings))  # read when Prefect is imported
        import prefect  # noqa: F401  # takes seconds, while the server starts

        yield server.wait()


def _sweep(session: Session, api: PrefectApi) -> None:
    """Update the state of earlier runs whose process is gone."""
    with api.client(timeout=30) as client, suppress(httpx.HTTPError):
        Sweeper(session.workspace, client).sweep()


@contextmanager
def _cancelled_from_the_server(session: Session, api: PrefectApi) -> Iterator[None]:
    """Poll the server, and interrupt the run like Ctrl-C if it was cancelled there."""
    done = threading.Event()

    def ask() -> None:
        with api.client(timeout=10) as client:
            while not done.wait(ASK_EVERY):
                if any(_is_cancelled(client, run) for run in session.prefect_ids()):
                    session.cancelled.set()
                    os.kill(os.getpid(), signal.SIGINT)
                    return

    watcher = threading.Thread(target=ask, name="cancellation", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _is_cancelled(client: httpx.Client, run: str) -> bool:
    try:
        response = client.get(f"/flow_runs/{run}")
        return response.status_code == 200 and response.json()["state"]["type"] in {"CANCELLING", "CANCELLED"}
    except (httpx.HTTPError, KeyError, TypeError, ValueError):
        return False
