"""The service that keeps the records true while servers run: `python -m cupola_flows.servers.sweeper`. It sweeps flow
runs whose process is gone, and sends what ended runs left for MLflow."""

import time
import traceback

import httpx

from cupola_flows.servers.services import find_prefect
from cupola_flows.servers.sweeping import Sweeper
from cupola_platform.errors import CupolaError
from cupola_platform.settings import Settings, load_settings
from cupola_platform.tracking.tracker import flush_spool
from cupola_platform.workspace import Workspace

EVERY = 5.0
"""Seconds between two looks."""


def main() -> None:
    """Look again and again until a signal ends it. What fails is told in the log, and tried again."""
    settings = load_settings()
    seen: dict[str, tuple[str, float]] = {}
    while True:
        try:
            _look(settings, seen)
        except (CupolaError, httpx.HTTPError) as error:
            print(f"{type(error).__name__}: {error}", flush=True)
        except Exception:  # noqa: BLE001  without it, nobody would look again
            traceback.print_exc()
        time.sleep(EVERY)


def _look(settings: Settings, seen: dict[str, tuple[str, float]]) -> None:
    workspace = Workspace.open(settings.home)
    try:
        if api := find_prefect(settings):
            with api.client(timeout=30) as client:
                for line in Sweeper(workspace, client, seen).sweep():
                    print(line, flush=True)
        flushed = flush_spool(workspace)
        if flushed.sent:
            print(f"Sent what {flushed.sent} runs had left for MLflow.", flush=True)
    finally:
        workspace.registry.close()


if __name__ == "__main__":
    main()
