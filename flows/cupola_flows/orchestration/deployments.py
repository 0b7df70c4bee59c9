"""Deploys the lifecycle to a Prefect server, and submits runs of it. Prefect is imported only to deploy; the rest uses
HTTP."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from cupola_flows.orchestration.kubernetes_pool import TYPE as KUBERNETES
from cupola_flows.orchestration.kubernetes_pool import job_template, pool_name
from cupola_flows.orchestration.sharing import set_all_limits
from cupola_flows.recipe.loading import find_recipe, load_recipe, shipped
from cupola_flows.servers.prefect_api import PrefectApi
from cupola_flows.servers.services import find_prefect
from cupola_flows.servers.work_pool import WORK_POOL, WORKER_TYPE, ensure_work_pool
from cupola_flows.terminal.text import in_markdown
from cupola_platform.errors import ConfigError, NotFoundError, ServiceError
from cupola_platform.nearest import did_you_mean
from cupola_platform.security import credential
from cupola_platform.settings import Settings, load_settings

FLOW = "lifecycle"


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe that comes with the package."""

    name: str
    path: Path
    description: str
    schedule: str | None


def list_recipes() -> list[ShippedRecipe]:
    """Every recipe that comes with the package."""
    loaded = {path: load_recipe(path) for path in shipped().values()}
    return [ShippedRecipe(path.stem, path, recipe.description, recipe.schedule) for path, recipe in loaded.items()]


def deploy(name_or_path: str, settings: Settings, on: str | None = None) -> str:
    """Deploy the lifecycle of a recipe to the running server. Returns its name, such as `lifecycle/tiny`.

    Args:
        on: a Kubernetes cluster of `cupola.toml`, whose pods run the recipe; None for the worker of `cupola up`.

    Raises:
        ConfigError: `on` is no Kubernetes cluster, or its pods would not find the recipe.
        ServiceError: no server is running.
    """
    recipe, reference = load_recipe(name_or_path), _reference(name_or_path)
    pool, template = (pool_name(on), job_template(settings, on)) if on else (WORK_POOL, None)
    if on and reference not in shipped() and not Path(reference).is_relative_to(settings.home):
        raise ConfigError(f"--on {on}: its pods do not see {reference}. Put the recipe into {settings.home}.")
    api = _server(settings)
    ensure_work_pool(api, pool, KUBERNETES if on else WORKER_TYPE, template)
    set_all_limits(settings, api)
    os.environ.update(api.environment(settings))
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.flows import EntrypointType

    from cupola_flows.orchestration.flows import lifecycle

    deployment = lifecycle.to_deployment(
        name=recipe.name,
        description=in_markdown(recipe.description),
        parameters={"recipe": reference, "workspace": str(settings.home)},
        schedule=CronSchedule(cron=recipe.schedule, timezone="UTC") if recipe.schedule else None,
        entrypoint_type=EntrypointType.MODULE_PATH,
        work_pool_name=pool,
        tags=["cupola"],
    )
    deployment.apply()
    return f"{FLOW}/{recipe.name}"


def submit(
    recipe: str, overrides: Sequence[str] = (), only: Sequence[str] = (), *, settings: Settings | None = None
) -> str:
    """Submit a run of a deployed recipe. Returns the flow run's id.

    The recipe and the overrides are validated before anything is sent.

    Raises:
        ConfigError: an override is invalid.
        NotFoundError: the recipe is not deployed.
        ServiceError: no server is running, or it refuses.
    """
    settings = settings or load_settings()
    loaded = load_recipe(recipe, overrides)
    with _server(settings).client(timeout=30) as client:
        deployment = client.get(f"/deployments/name/{FLOW}/{loaded.name}")
        if deployment.status_code == 404:
            known = [each["name"] for each in _posted(client, "/deployments/filter", {})]
            raise NotFoundError(f"{recipe} is not deployed. Run `cupola deploy {recipe}`.{did_you_mean(recipe, known)}")
        body = {
            "parameters": {
                "recipe": _reference(recipe),
                "overrides": list(overrides),
                "only": list(only),
                "workspace": str(settings.home),
            }
        }
        run: dict[str, Any] = _posted(client, f"/deployments/{deployment.json()['id']}/create_flow_run", body)
        return str(run["id"])


def flow_run(run_id: str, settings: Settings | None = None) -> dict[str, Any]:
    """A flow run from the server: state, times, parameters."""
    settings = settings or load_settings()
    with _server(settings).client(timeout=30) as client:
        response = client.get(f"/flow_runs/{run_id}")
        if response.status_code != 200:
            raise NotFoundError(f"The Prefect server has no flow run {run_id}.")
        return dict(response.json())


def _posted(client: httpx.Client, path: str, body: Mapping[str, Any]) -> Any:
    response = client.post(path, json=body)
    if response.status_code >= 400:
        raise ServiceError(f"Prefect refused {path}: {response.status_code} {response.text[:200]}")
    return response.json()


def _server(settings: Settings) -> PrefectApi:
    api = find_prefect(settings)
    if not api:
        raise ServiceError("No Prefect server is running. Start one with `cupola up`.")
    with api.client(timeout=30) as client:
        if client.get("/admin/version").status_code != 401:
            return api
    if settings.prefect_api_url:
        next_move = "Set CUPOLA_PREFECT_API_AUTH_STRING to the server's user:password."
    else:
        next_move = f"{settings.home / credential.FILE} belongs to another server. Run `cupola down`, then `cupola up`."
    raise ServiceError(f"{api.url} refused the credential. {next_move}")


def _reference(name_or_path: str) -> str:
    """The name of a shipped recipe, or the absolute path of a file, since the worker runs in another folder."""
    if name_or_path in shipped():
        return name_or_path
    path = find_recipe(name_or_path).absolute()
    if not path.is_file():
        raise ConfigError(f"{name_or_path}: no such file.")
    return str(path)
