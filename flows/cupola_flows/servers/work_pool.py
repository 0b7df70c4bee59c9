"""The work pool of submitted runs, and its concurrency limit."""

import httpx

from cupola_flows.servers.prefect_api import PrefectApi
from cupola_platform.errors import ServiceError

WORK_POOL = "cupola"
WORKER_TYPE = "cupola"
CONCURRENT_RUNS = 1
"""Runs at a time, as one run uses all cores of a machine."""


def ensure_work_pool(api: PrefectApi) -> None:
    """Create the pool, or set the limit of an existing one. The worker and `deploy` both call this first.

    Raises:
        ServiceError: the server refuses, or does not respond.
    """
    wanted = {"concurrency_limit": CONCURRENT_RUNS}
    try:
        with api.client(timeout=60) as client:
            made = client.post("/work_pools/", json={"name": WORK_POOL, "type": WORKER_TYPE, **wanted})
            if made.status_code == 409:
                made = client.patch(f"/work_pools/{WORK_POOL}", json=wanted)
    except httpx.HTTPError as error:
        raise ServiceError(f"{api.url} does not respond ({type(error).__name__}).") from None
    if made.status_code >= 400:
        raise ServiceError(f"Prefect refused the work pool {WORK_POOL}: {made.status_code} {made.text[:200]}")
