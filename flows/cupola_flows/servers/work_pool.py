"""The work pool that submitted runs wait in: made with its limit, and held to it, whoever comes first."""

import httpx

from cupola_flows.servers.prefect_api import PrefectApi
from cupola_platform.errors import ServiceError

WORK_POOL = "cupola"
WORKER_TYPE = "cupola"
CONCURRENT_RUNS = 1
"""Runs at a time: a run takes all of a machine's cores."""


def ensure_work_pool(api: PrefectApi) -> None:
    """Make the pool, or set the limit of the one that is there. The worker and `deploy` both call this first.

    Raises:
        ServiceError: the server refuses, or does not answer.
    """
    wanted = {"concurrency_limit": CONCURRENT_RUNS}
    try:
        with api.client(timeout=60) as client:
            made = client.post("/work_pools/", json={"name": WORK_POOL, "type": WORKER_TYPE, **wanted})
            if made.status_code == 409:
                made = client.patch(f"/work_pools/{WORK_POOL}", json=wanted)
    except httpx.HTTPError as error:
        raise ServiceError(f"{api.url} does not answer ({type(error).__name__}).") from None
    if made.status_code >= 400:
        raise ServiceError(f"Prefect refused the work pool {WORK_POOL}: {made.status_code} {made.text[:200]}")
