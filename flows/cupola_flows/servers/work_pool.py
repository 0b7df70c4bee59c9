"""The work pools of submitted runs."""

from collections.abc import Mapping
from typing import Any

import httpx

from cupola_flows.servers.prefect_api import PrefectApi
from cupola_platform.errors import ServiceError

WORK_POOL = "cupola"
WORKER_TYPE = "cupola"
MOST_RUNS = 16
"""Runs at a time, each a process that waits for its jobs. How many jobs run is limited by the ranks of each place."""


def ensure_work_pool(
    api: PrefectApi, name: str = WORK_POOL, kind: str = WORKER_TYPE, template: Mapping[str, Any] | None = None
) -> None:
    """Create a pool, or set the limit and template of an existing one. The worker and `deploy` both call this first.

    Args:
        kind: type of the workers.
        template: what each run starts, for workers that start something; see Prefect's base job template.

    Raises:
        ServiceError: the server refuses, or does not respond.
    """
    wanted: dict[str, Any] = {"concurrency_limit": MOST_RUNS}
    if template is not None:
        wanted["base_job_template"] = template
    try:
        with api.client(timeout=60) as client:
            made = client.post("/work_pools/", json={"name": name, "type": kind, **wanted})
            if made.status_code == 409:
                made = client.patch(f"/work_pools/{name}", json=wanted)
    except httpx.HTTPError as error:
        raise ServiceError(f"{api.url} does not respond ({type(error).__name__}).") from None
    if made.status_code >= 400:
        raise ServiceError(f"Prefect refused the work pool {name}: {made.status_code} {made.text[:200]}")
