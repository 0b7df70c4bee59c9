"""The worker: runs submitted lifecycles and nothing else, whatever a deployment says.

A deployment can name any file as its entry point, steps that fetch code, a command, an environment. Prefect's process
worker follows all of that, so anyone who can create a deployment can run commands on this machine. This worker ignores
it: its processes run only `ENTRYPOINT`. A run that asks for anything else is refused, with the reason.
"""

import argparse
import asyncio
import os
import sys
import threading
from contextlib import suppress

from cupola_flows.servers import sweeper
from cupola_flows.servers.services import find_prefect
from cupola_flows.servers.sweeping import worker_name
from cupola_flows.servers.work_pool import MOST_RUNS, WORK_POOL, ensure_work_pool
from cupola_platform.errors import CupolaError, ServiceError
from cupola_platform.settings import load_settings


def main() -> None:
    """Work until SIGTERM or SIGINT; an active run saves and ends first."""
    parser = argparse.ArgumentParser(prog="python -m cupola_flows.orchestration.worker", description=__doc__)
    parser.add_argument(
        "--health", action="store_true", help="Serve /health on PREFECT_WORKER_WEBSERVER_HOST and _PORT."
    )
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="Also sweep runs whose process is gone, if no sweeper service is running.",
    )
    options = parser.parse_args()
    try:
        settings = load_settings()
        api = find_prefect(settings)
        if api is None:
            raise ServiceError("No Prefect server is running. Start one with `cupola up`.")
        ensure_work_pool(api)
    except CupolaError as error:
        print(f"cupola: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    if options.sweep:
        threading.Thread(target=sweeper.main, name="sweeper", daemon=True).start()
    os.environ.setdefault("PREFECT_WORKER_WEBSERVER_HOST", "127.0.0.1")
    os.environ.update(api.environment(settings))  # read when Prefect is imported
    _work(health=options.health)


def _work(*, health: bool) -> None:
    from prefect.utilities.processutils import setup_signal_handlers_worker

    from cupola_flows.orchestration.prefect_worker import CupolaWorker

    setup_signal_handlers_worker(os.getpid(), "the worker", print)
    worker = CupolaWorker(work_pool_name=WORK_POOL, name=worker_name(os.getpid()), limit=MOST_RUNS)
    with suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(worker.start(with_healthcheck=health))


if __name__ == "__main__":
    main()
