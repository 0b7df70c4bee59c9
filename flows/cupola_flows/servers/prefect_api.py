"""A Prefect server's API and its credential, and a temporary server for one run."""

import base64
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from pydantic import SecretStr

from cupola_flows.servers.processes import end_trees, free_port, spawn, wait_for
from cupola_platform.security import credential
from cupola_platform.settings import Settings

BUSY_RETRIES = (0.5, 1.0, 2.0, 4.0)
"""Seconds to wait before each further try of a request that finds the server's database busy."""
GRACE = 10.0
"""Seconds between SIGTERM and SIGKILL when stopping a server."""
NO_TELEMETRY = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "STREAMLIT_BROWSER_GATHER_USAGE_STATS": "false",
}


class _Patient(httpx.HTTPTransport):
    """Repeats requests that the server answers with 503, which changed nothing: its database was busy."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        for seconds in BUSY_RETRIES:
            response = super().handle_request(request)
            if response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                return response
            response.close()
            time.sleep(seconds)
        return super().handle_request(request)


@dataclass(frozen=True)
class PrefectApi:
    """URL and credential of a Prefect server's API."""

    url: str
    credential: SecretStr | None = None
    """`user:password`; None for a server without authentication."""

    def client(self, timeout: float) -> httpx.Client:
        """An HTTP client for the API that sends the credential."""
        headers = {}
        if self.credential:
            basic = base64.b64encode(self.credential.get_secret_value().encode()).decode()
            headers["Authorization"] = f"Basic {basic}"
        return httpx.Client(base_url=self.url, timeout=timeout, headers=headers, transport=_Patient())

    def environment(self, settings: Settings) -> dict[str, str]:
        """Environment variables that keep Prefect's files in the workspace and point its clients at this API.
        Set them before Prefect is imported."""
        variables = prefect_home(settings) | {"PREFECT_API_URL": self.url}
        if self.credential:
            variables["PREFECT_API_AUTH_STRING"] = self.credential.get_secret_value()
        return variables

    def server_environment(self, settings: Settings) -> dict[str, str]:
        """The same for the server itself, which requires the credential."""
        variables = self.environment(settings)
        if self.credential:
            variables["PREFECT_SERVER_API_AUTH_STRING"] = self.credential.get_secret_value()
        return variables


def prefect_home(settings: Settings) -> dict[str, str]:
    """Environment variables that keep Prefect's files in the workspace."""
    return {
        "PREFECT_HOME": str(settings.home / "prefect"),
        "PREFECT_PROFILES_PATH": str(settings.home / "prefect" / "profiles.toml"),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
        **NO_TELEMETRY,
    }


def prefect_command(port: int) -> list[str]:
    return [sys.executable, "-m", "cupola_flows.servers.prefect_server", "--port", str(port)]


@contextmanager
def own_prefect(settings: Settings) -> Iterator["PrefectServer"]:
    """A Prefect server that stops with the block, and with this process however it ends. Call `wait` before use."""
    server = PrefectServer(settings)
    try:
        yield server
    finally:
        server.stop()


class PrefectServer:
    """A server for one run, without the UI, with a credential that only this process and the server know."""

    def __init__(self, settings: Settings) -> None:
        port = free_port()
        self.api = PrefectApi(f"http://127.0.0.1:{port}/api", credential.generate())
        self.log = settings.home / "logs" / "prefect-run.log"
        command = [*prefect_command(port), "--no-ui", "--no-services"]
        self.process = spawn(command, self.log, self.api.server_environment(settings), ends_with_us=True)

    def wait(self) -> PrefectApi:
        """Wait for the API and return it. Raises ServiceError."""
        wait_for(
            f"{self.api.url}/health",
            self.process.pid,
            lambda: self.process.poll() is None,
            "Prefect's server",
            self.log,
        )
        return self.api

    def stop(self) -> None:
        end_trees([self.process.pid], GRACE)
        self.process.wait()
