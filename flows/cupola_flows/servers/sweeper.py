"""The service that keeps run records up to date: `python -m cupola_flows.servers.sweeper`. It sweeps flow runs whose
process is gone, and sends pending MLflow data of ended runs."""

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
"""Seconds between sweeps."""


def main() -> None:
    """Sweep until a signal ends the process. Failures are logged and retried."""
    settings = load_settings()
    seen: dict[str, tuple[str, float]] = {}
    while True:
        try:
            _sweep(settings, seen)
        except (CupolaError, httpx.HTTPError) as error:
            print(f"{type(error).__name__}: {error}", flush=True)
        except Exception:  # noqa: BLE001  otherwise the service would stop
            traceback.print_exc()
        time.sleep(EVERY)


def _sweep(settings: Settings, seen: dict[str, tuple[str, float]]) -> None:
    workspace = Workspace.open(settings.home)
    try:
        if api := find_prefect(settings):
            with api.client(timeout=30) as client:
                for line in Sweeper(workspace, client, seen).sweep():
                    print(line, flush=True)
        flushed = flush_spool(workspace)
        if flushed.sent:
            print(f"Sent pending MLflow data of {flushed.sent} runs.", flush=True)
    finally:
        workspace.registry.close()


if __name__ == "__main__":
    main()
