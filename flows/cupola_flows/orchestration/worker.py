"""The worker: carries submitted runs out, and nothing else, whatever a deployment says.

A deployment can name any file as its entry point, steps that fetch code, a command, an environment. Prefect's own
process worker follows all of that, so whoever can make a deployment runs commands here. This one looks at none of it:
the process that it starts runs `ENTRYPOINT`. What asks for something else is refused by name,
so that nobody waits for what will not happen.
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
from cupola_flows.servers.work_pool import CONCURRENT_RUNS, WORK_POOL, ensure_work_pool
from cupola_platform.errors import CupolaError, ServiceError
from cupola_platform.settings import load_settings


def main() -> None:
    """Work until SIGTERM or SIGINT; a run under way saves and ends first."""
    parser = argparse.ArgumentParser(prog="python -m cupola_flows.orchestration.worker", description=__doc__)
    parser.add_argument(
        "--health", action="store_true", help="Answer /health on PREFECT_WORKER_WEBSERVER_HOST and _PORT."
    )
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="Sweep runs without a process too, where no sweeper runs beside the worker.",
    )
    options = parser.parse_args()
    try:
        settings = load_settings()
        api = find_prefect(settings)
        if api is None:
            raise ServiceError("No Prefect server runs. Start one with `cupola up`.")
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
    worker = CupolaWorker(work_pool_name=WORK_POOL, name=worker_name(os.getpid()), limit=CONCURRENT_RUNS)
    with suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(worker.start(with_healthcheck=health))


if __name__ == "__main__":
    main()
