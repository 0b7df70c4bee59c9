"""Checks this machine for what Cupola needs."""

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Literal, TypedDict

import psutil

from cupola_flows.servers.processes import answers
from cupola_flows.servers.services import status
from cupola_platform.errors import CupolaError
from cupola_platform.registry import Registry
from cupola_platform.security.urls import shown
from cupola_platform.settings import Settings
from cupola_platform.store import open_store

NEEDED_MEMORY = 6 * 1024**3
NEEDED_DISK = 5 * 1024**3
PACKAGES = (
    "torch",
    "megatron-core",
    "transformers",
    "prefect",
    "mlflow",
    "sqlalchemy",
    "fastapi",
    "streamlit",
    "psutil",
)


class Finding(TypedDict):
    """Result of one check."""

    what: str
    state: Literal["ok", "note", "missing"]
    detail: str


def examine(settings: Settings) -> list[Finding]:
    """All checks, in the order in which they would stop a run."""
    findings = [*_machine(settings), *_packages(), *_servers(settings)]
    return [{**each, "detail": shown(each["detail"])} for each in findings]


def _machine(settings: Settings) -> Iterator[Finding]:
    version = sys.version_info
    fits = (3, 11) <= version[:2] <= (3, 13)
    yield _finding("Python", fits, f"{version.major}.{version.minor}.{version.micro}; 3.11 to 3.13 are supported")
    cores = len(os.sched_getaffinity(0))
    yield _finding("cores", cores >= 2, f"{cores}; two training processes need 2", "note")
    memory = psutil.virtual_memory().available
    yield _finding(
        "memory", memory >= NEEDED_MEMORY, f"{memory / 1024**3:.1f} GiB free; the tiny recipe needs up to 6", "note"
    )
    home = settings.home
    while not home.exists():
        home = home.parent
    free = shutil.disk_usage(home).free
    yield _finding("disk", free >= NEEDED_DISK, f"{free / 1024**3:.1f} GiB free at {home}; 5 are recommended", "note")
    yield _finding("workspace", os.access(home, os.W_OK), f"{settings.home}; must be writable")
    gpus = shutil.which("nvidia-smi")
    yield {
        "what": "GPU",
        "state": "ok" if gpus else "note",
        "detail": gpus or "none found; training runs on the CPU (gloo, fp32)",
    }


def _packages() -> Iterator[Finding]:
    for name in PACKAGES:
        try:
            yield {"what": name, "state": "ok", "detail": importlib.metadata.version(name)}
        except importlib.metadata.PackageNotFoundError:
            yield {"what": name, "state": "missing", "detail": "not installed; run make install"}


def _servers(settings: Settings) -> Iterator[Finding]:
    yield _tried("store", settings.store_url or f"{settings.home}/store", lambda: _ask_store(settings))
    kind = "PostgreSQL" if "postgres" in settings.registry else "SQLite"
    yield _tried("registry", kind, lambda: _ask_registry(settings))
    if settings.prefect_api_url:
        ok = answers(f"{settings.prefect_api_url}/health")
        yield _finding("Prefect", ok, f"{settings.prefect_api_url} {'responds' if ok else 'does not respond'}")
    if settings.mlflow_tracking_uri:
        ok = answers(f"{settings.mlflow_tracking_uri}/health")
        yield _finding(
            "MLflow", ok, f"{settings.mlflow_tracking_uri} {'responds' if ok else 'does not respond'}", "note"
        )
    running = [service.name for service in status(settings)]
    yield {
        "what": "services",
        "state": "note",
        "detail": ", ".join(running) or "none running; start them with cupola up",
    }


def _ask_store(settings: Settings) -> None:
    if settings.store_url:
        open_store(settings).holds("0" * 64)


def _ask_registry(settings: Settings) -> None:
    if settings.registry_url or (settings.home / "registry.db").exists():  # a check creates no registry
        Registry(settings.registry, patience=0).close()


def _tried(what: str, detail: str, ask: Callable[[], None]) -> Finding:
    try:
        ask()
    except CupolaError as error:
        return _finding(what, False, str(error))
    return _finding(what, True, detail)


def _finding(what: str, ok: bool, detail: str, otherwise: Literal["note", "missing"] = "missing") -> Finding:
    return {"what": what, "state": "ok" if ok else otherwise, "detail": detail}
