"""Prefect's server behind the guard, which requires a credential and accepts only known hosts and origins.

`python -m cupola_flows.servers.prefect_server --port 4200`; PREFECT_SERVER_API_AUTH_STRING sets the credential.
"""

import argparse
import os
import sys

from cupola_platform.errors import CupolaError
from cupola_platform.security.guard import LOOPBACK, Guard
from cupola_platform.settings import load_settings

LEASES_IN_FILES = "prefect.server.concurrency.lease_storage.filesystem"
"""So that a server that is started again knows who holds slots of its limits. By default it remembers that in its own
memory, and the slots would stay taken."""


def main() -> None:
    """Serve until SIGTERM. Exits with status 2 if no credential is set."""
    parser = argparse.ArgumentParser(prog="python -m cupola_flows.servers.prefect_server", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen on.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--no-ui", action="store_true", help="Serve only the API.")
    parser.add_argument("--no-services", action="store_true", help="Run no scheduler or other background services.")
    options = parser.parse_args()
    secret = os.environ.get("PREFECT_SERVER_API_AUTH_STRING")
    if not secret:
        sys.exit(_fail("PREFECT_SERVER_API_AUTH_STRING is not set. Set it to user:password. Nothing was started."))
    os.environ["PREFECT_API_AUTH_STRING"] = secret  # its background services are clients of the API
    try:
        hosts = load_settings().allowed_hosts
    except CupolaError as error:
        sys.exit(_fail(str(error)))
    serve(options.host, options.port, hosts, ui=not options.no_ui, services=not options.no_services)


def serve(host: str, port: int, hosts: tuple[str, ...], *, ui: bool, services: bool) -> None:
    """Serve on `host`, accepting requests for `hosts` and the loopback names."""
    pages = [f"{scheme}://{name}" for name in hosts for scheme in ("http", "https")]
    pages += [f"http://{name}:{port}" for name in (*sorted(LOOPBACK), *hosts)]
    os.environ["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] = ",".join(pages)
    os.environ["PREFECT_SERVER_UI_ENABLED"] = str(ui).lower()
    os.environ.setdefault("PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE", LEASES_IN_FILES)

    import uvicorn
    from prefect.server.api.server import create_app

    application = create_app(final=True, webserver_only=not services)
    uvicorn.run(Guard(application, hosts=hosts), host=host, port=port, log_level="warning")


def _fail(message: str) -> int:
    print(f"cupola: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
