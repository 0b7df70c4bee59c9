"""The servers on this machine: Prefect and its worker, MLflow, the console. Started, found again, ended."""

import base64
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import psutil

from cupola_flows.processes import answers, end_trees, free_port, spawn, wait_for
from cupola_platform.errors import ServiceError
from cupola_platform.settings import Settings

WORK_POOL = "cupola"
GRACE = 10.0
"""Seconds between SIGTERM and SIGKILL of a server."""
WORKER_GRACE = 35.0
"""The same of the worker: a run that it carries out saves first."""
NO_TELEMETRY = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "STREAMLIT_BROWSER_GATHER_USAGE_STATS": "false",
}


@dataclass(frozen=True)
class Service:
    """A server that was started, as kept in `pids/NAME.json`."""

    name: str
    pid: int
    born: float
    """Creation time of the process: a number may be given to another process later."""
    url: str = ""
    health: str = ""
    """What answers 200 when the service is ready; empty for the worker."""

    def alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - self.born) < 1
        except psutil.NoSuchProcess:
            return False


def prefect_environment(settings: Settings, url: str | None = None) -> dict[str, str]:
    """Variables that keep Prefect inside the workspace, and point its clients at `url`."""
    settings_of_prefect = {
        "PREFECT_HOME": str(settings.home / "prefect"),
        "PREFECT_PROFILES_PATH": str(settings.home / "prefect" / "profiles.toml"),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
        **NO_TELEMETRY,
    }
    if settings.prefect_api_auth_string:
        secret = settings.prefect_api_auth_string.get_secret_value()
        settings_of_prefect |= {"PREFECT_API_AUTH_STRING": secret, "PREFECT_SERVER_API_AUTH_STRING": secret}
    return settings_of_prefect | ({"PREFECT_API_URL": url} if url else {})


def prefect_client(settings: Settings, url: str, timeout: float) -> httpx.Client:
    """A client of a Prefect server's API that bears the settings' credential."""
    secret = settings.prefect_api_auth_string
    basic = base64.b64encode(secret.get_secret_value().encode()).decode() if secret else ""
    return httpx.Client(base_url=url, timeout=timeout, headers={"Authorization": f"Basic {basic}"} if basic else {})


def find_prefect(settings: Settings) -> str | None:
    """The API of a Prefect server that answers: the settings', or the one that `cupola up` started."""
    if settings.prefect_api_url:
        if not answers(f"{settings.prefect_api_url}/health"):
            raise ServiceError(
                f"prefect_api_url={settings.prefect_api_url} does not answer. Start that server, or leave the setting "
                "out to let one start on this machine."
            )
        return settings.prefect_api_url
    service = load(settings, "prefect")
    return service.url if service and service.alive() and answers(service.health) else None


@contextmanager
def own_prefect(settings: Settings) -> Iterator["PrefectServer"]:
    """A Prefect server that ends with the block, and with this process whatever ends it. Not waited for yet."""
    server = PrefectServer(settings)
    try:
        yield server
    finally:
        server.stop()


class PrefectServer:
    """A server of the API alone, for one run."""

    def __init__(self, settings: Settings) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/api"
        self.log = settings.home / "logs" / "prefect-run.log"
        command = [*prefect_command(port), "--no-ui", "--no-services"]
        self.process = spawn(command, self.log, prefect_environment(settings), ends_with_us=True)

    def wait(self) -> str:
        """The API's URL, once it answers. Raises ServiceError."""
        wait_for(f"{self.url}/health", lambda: self.process.poll() is None, "Prefect's server", self.log)
        return self.url

    def stop(self) -> None:
        end_trees([self.process.pid], GRACE)
        self.process.wait()


def prefect_command(port: int) -> list[str]:
    return [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]


def up(settings: Settings) -> list[Service]:
    """Start what does not run yet; give all of it. Idempotent.

    Raises:
        ServiceError: a server ended, or did not answer in time; names its log.
    """
    (settings.home / "pids").mkdir(parents=True, exist_ok=True)
    services = [service for service in (_prefect(settings), _mlflow(settings)) if service]
    url = settings.prefect_api_url or services[0].url
    for service in services:
        _ready(settings, service)
    services.append(_worker(settings, url))
    services.append(_console(settings, url, services))
    _ready(settings, services[-1])
    return services


def down(settings: Settings) -> list[str]:
    """End every service of the workspace and its children; names them. The worker first: without its server it lingers."""
    ended = []
    for names, grace in ((("worker",), WORKER_GRACE), (("console", "mlflow", "prefect"), GRACE)):
        living = [service for name in names if (service := load(settings, name)) and service.alive()]
        end_trees([service.pid for service in living], grace)
        ended += [service.name for service in living]
        for name in names:
            _record(settings, name).unlink(missing_ok=True)
    return ended


def status(settings: Settings) -> list[Service]:
    """The services that live."""
    found = (load(settings, name) for name in ("prefect", "worker", "mlflow", "console"))
    return [service for service in found if service and service.alive()]


def load(settings: Settings, name: str) -> Service | None:
    """What is recorded of a service, alive or not."""
    try:
        return Service(**json.loads(_record(settings, name).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def tracking_server(settings: Settings) -> str | None:
    """The page of the MLflow server that `cupola up` started, if it lives."""
    service = load(settings, "mlflow")
    return service.url if service and service.alive() else None


def _prefect(settings: Settings) -> Service | None:
    if settings.prefect_api_url:
        return None
    port = free_port(4200)
    url = f"http://127.0.0.1:{port}/api"
    environment = prefect_environment(settings, url) | {"PREFECT_UI_API_URL": url}
    return _keep(settings, "prefect", prefect_command(port), environment, url, f"{url}/health")


def _mlflow(settings: Settings) -> Service | None:
    if settings.mlflow_tracking_uri:
        return None
    port = free_port(5000)
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", settings.tracking_uri),
        *("--artifacts-destination", str(settings.home / "mlflow-artifacts")),
    ]
    url = f"http://127.0.0.1:{port}"
    return _keep(settings, "mlflow", command, NO_TELEMETRY, url, f"{url}/health")


def _worker(settings: Settings, url: str) -> Service:
    environment = prefect_environment(settings, url) | {
        "CUPOLA_HOME": str(settings.home),
        "CUPOLA_PREFECT_API_URL": url,
        "PREFECT_WORKER_QUERY_SECONDS": "5",
    }
    prefect = [sys.executable, "-m", "prefect"]
    command = [*prefect, "worker", "start", "--pool", WORK_POOL, "--type", "process", "--name", f"cupola-{os.getpid()}"]
    return _keep(settings, "worker", command, environment, "", "")


def _console(settings: Settings, url: str, services: Sequence[Service]) -> Service:
    from importlib.util import find_spec

    spec = find_spec("cupola_dashboards")
    if spec is None or not spec.submodule_search_locations:
        raise ServiceError("The console's package cupola_dashboards is not installed. Install cupola again.")
    port = free_port(8501)
    page = Path(spec.submodule_search_locations[0]) / "console.py"
    command = [
        *(sys.executable, "-m", "streamlit", "run", str(page), "--server.address", "127.0.0.1"),
        *("--server.port", str(port), "--server.headless", "true", "--browser.gatherUsageStats", "false"),
    ]
    pages = {service.name: service.url.removesuffix("/api") for service in services if service.url}
    environment = {
        **prefect_environment(settings, url),
        "CUPOLA_HOME": str(settings.home),
        "CUPOLA_PREFECT_API_URL": url,
        "CUPOLA_PAGES": json.dumps(pages),
    }
    return _keep(
        settings, "console", command, environment, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port}/_stcore/health"
    )


def _keep(
    settings: Settings, name: str, command: Sequence[str], environment: Mapping[str, str], url: str, health: str
) -> Service:
    """The service as it runs already, or started and recorded."""
    known = load(settings, name)
    if known and known.alive():
        return known
    process = spawn(command, settings.home / "logs" / f"{name}.log", environment)
    service = Service(name, process.pid, psutil.Process(process.pid).create_time(), url, health)
    _record(settings, name).write_text(json.dumps(asdict(service)))
    return service


def _ready(settings: Settings, service: Service) -> None:
    wait_for(service.health, service.alive, service.name, settings.home / "logs" / f"{service.name}.log")


def _record(settings: Settings, name: str) -> Path:
    return settings.home / "pids" / f"{name}.json"
