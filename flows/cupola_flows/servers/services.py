"""The services on this machine: Prefect, its worker, the sweeper, MLflow and the console. Starts, finds and stops
them."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import SecretStr

from cupola_flows.servers.cancelling import runs_cancelled
from cupola_flows.servers.prefect_api import GRACE, NO_TELEMETRY, PrefectApi, prefect_command
from cupola_flows.servers.processes import answers, end_trees, free_port, spawn, wait_for
from cupola_platform.errors import CupolaError, ServiceError
from cupola_platform.liveness import lives, start_of
from cupola_platform.security import credential
from cupola_platform.settings import Settings
from cupola_platform.workspace import Workspace

WORKER_GRACE = 35.0
"""Seconds between SIGTERM and SIGKILL of a worker that may have an active run, which saves first."""


@dataclass(frozen=True)
class Service:
    """A started service, as recorded in `pids/NAME.json`."""

    name: str
    pid: int
    start: str
    """`liveness.start_of` the process, because process ids are reused."""
    url: str = ""
    health: str = ""
    """URL that returns 200 once the service is ready; empty for the worker and the sweeper."""

    def alive(self) -> bool:
        return lives(self.pid, self.start)


def find_prefect(settings: Settings) -> PrefectApi | None:
    """A responding Prefect server: that of the settings, or the one that `cupola up` started."""
    if settings.prefect_api_url:
        if not answers(f"{settings.prefect_api_url}/health"):
            raise ServiceError(
                f"prefect_api_url={settings.prefect_api_url} does not respond. Start that server, or remove the "
                "setting to use one on this machine."
            )
        return PrefectApi(settings.prefect_api_url, settings.prefect_api_auth_string)
    service = load(settings, "prefect")
    if service and service.alive() and answers(service.health):
        return PrefectApi(service.url, credential.read(settings.home))
    return None


def up(settings: Settings) -> list[Service]:
    """Start the services that are not running, and return all. Idempotent.
    If none is running, creates a new credential for all.

    Raises:
        ServiceError: a server exited or did not respond in time; names its log.
    """
    (settings.home / "pids").mkdir(parents=True, exist_ok=True)
    secret = _credential(settings)
    services = [service for service in (_prefect(settings, secret), _mlflow(settings, secret)) if service]
    for service in services:
        _ready(settings, service)
    services.append(_sweeper(settings))
    services.append(_worker(settings))
    services.append(_console(settings, secret, services))
    _ready(settings, services[-1])
    return services


def down(settings: Settings) -> tuple[list[str], list[str]]:
    """Cancel the active runs of the workspace's services, then stop the services and their children.

    The sweeper stops first, so that it restarts nothing, and the worker before its server, without which it hangs on.

    Returns:
        The names of the runs and of the services.
    """
    ended = _end(settings, ["sweeper"], GRACE)
    with _runs_cancelled(settings) as runs:
        ended += _end(settings, ["worker"], WORKER_GRACE if runs is None else GRACE)
    ended += _end(settings, ["console", "mlflow", "prefect"], GRACE)
    credential.remove(settings.home)
    return runs or [], ended


@contextmanager
def _runs_cancelled(settings: Settings) -> Iterator[list[str] | None]:
    """Names of the cancelled runs; None if they cannot be listed."""
    with ExitStack() as stack:
        runs = None
        with suppress(CupolaError):  # without the server or the registry, the next sweep finds the runs
            if api := find_prefect(settings):
                workspace = Workspace.open(settings.home, patience=5)
                client = stack.enter_context(api.client(timeout=30))
                ending = runs_cancelled(workspace, client, submitted_only=bool(settings.prefect_api_url))
                runs = stack.enter_context(ending)
        yield runs


def _end(settings: Settings, names: Sequence[str], grace: float) -> list[str]:
    living = [service for name in names if (service := load(settings, name)) and service.alive()]
    end_trees([service.pid for service in living], grace)
    for name in names:
        _record(settings, name).unlink(missing_ok=True)
    return [service.name for service in living]


def status(settings: Settings) -> list[Service]:
    """The running services."""
    services = (load(settings, name) for name in ("prefect", "sweeper", "worker", "mlflow", "console"))
    return [service for service in services if service and service.alive()]


def load(settings: Settings, name: str) -> Service | None:
    """The record of a service, running or not."""
    try:
        return Service(**json.loads(_record(settings, name).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _credential(settings: Settings) -> SecretStr:
    """The credential of all servers of the workspace; a new one if none of them is running."""
    known = credential.read(settings.home)
    if known and status(settings):
        return known
    made = credential.generate()
    credential.keep(settings.home, made)
    return made


def _prefect(settings: Settings, secret: SecretStr) -> Service | None:
    if settings.prefect_api_url:
        return None
    port = free_port(4200)
    api = PrefectApi(f"http://127.0.0.1:{port}/api", secret)
    environment = api.server_environment(settings) | {"PREFECT_UI_API_URL": api.url}
    return _keep(settings, "prefect", prefect_command(port), environment, api.url, f"{api.url}/health")


def _mlflow(settings: Settings, secret: SecretStr) -> Service | None:
    if settings.mlflow_tracking_uri:
        return None
    port = free_port(5000)
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--app-name", "cupola"),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", settings.tracking_uri),
        *("--artifacts-destination", str(settings.home / "mlflow-artifacts")),
    ]
    environment = NO_TELEMETRY | {
        "CUPOLA_HOME": str(settings.home),
        "CUPOLA_MLFLOW_AUTH_STRING": secret.get_secret_value(),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    url = f"http://127.0.0.1:{port}"
    return _keep(settings, "mlflow", command, environment, url, f"{url}/health")


def _worker(settings: Settings) -> Service:
    environment = {"CUPOLA_HOME": str(settings.home), "PREFECT_WORKER_QUERY_SECONDS": "5"}
    return _keep(settings, "worker", [sys.executable, "-m", "cupola_flows.orchestration.worker"], environment, "", "")


def _sweeper(settings: Settings) -> Service:
    environment = {"CUPOLA_HOME": str(settings.home)}
    return _keep(settings, "sweeper", [sys.executable, "-m", "cupola_flows.servers.sweeper"], environment, "", "")


def _console(settings: Settings, secret: SecretStr, services: Sequence[Service]) -> Service:
    from importlib.util import find_spec

    spec = find_spec("cupola_dashboards")
    if spec is None or not spec.submodule_search_locations:
        raise ServiceError("The package cupola_dashboards, which has the console, is not installed. Reinstall cupola.")
    port = free_port(8501)
    page = Path(spec.submodule_search_locations[0]) / "server.py"
    command = [
        *(sys.executable, "-m", "streamlit", "run", str(page), "--server.address", "127.0.0.1"),
        *("--server.port", str(port), "--server.headless", "true", "--browser.gatherUsageStats", "false"),
    ]
    pages = {service.name: service.url.removesuffix("/api") for service in services if service.url}
    password = settings.console_password
    environment = NO_TELEMETRY | {
        "CUPOLA_HOME": str(settings.home),
        "CUPOLA_PAGES": json.dumps(pages),
        "CUPOLA_CONSOLE_PASSWORD": password.get_secret_value() if password else credential.password(secret),
    }
    return _keep(
        settings, "console", command, environment, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port}/_stcore/health"
    )


def _keep(
    settings: Settings, name: str, command: Sequence[str], environment: Mapping[str, str], url: str, health: str
) -> Service:
    """The running service, or a new one, started and recorded."""
    known = load(settings, name)
    if known and known.alive():
        return known
    process = spawn(command, settings.home / "logs" / f"{name}.log", environment)
    service = Service(name, process.pid, start_of(process.pid) or "", url, health)
    _record(settings, name).write_text(json.dumps(asdict(service)))
    return service


def _ready(settings: Settings, service: Service) -> None:
    log = settings.home / "logs" / f"{service.name}.log"
    wait_for(service.health, service.pid, service.alive, service.name, log)


def _record(settings: Settings, name: str) -> Path:
    return settings.home / "pids" / f"{name}.json"
