"""Processes on this machine: start them with a log, wait for them, stop them with all their children."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from cupola_platform.errors import ServiceError
from cupola_platform.launch import tether
from cupola_platform.launch.local import JOB_TAG

PATIENCE = 180.0
"""Seconds for a server to respond; Prefect creates its database at the first start."""


def spawn(
    command: Sequence[str], log: Path, environment: Mapping[str, str], *, ends_with_us: bool = False
) -> "subprocess.Popen[bytes]":
    log.parent.mkdir(parents=True, exist_ok=True)
    if ends_with_us:
        command = [sys.executable, tether.__file__, str(os.getpid()), *command]
    with log.open("ab") as out:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **environment},
        )


def wait_for(url: str, pid: int, alive: Callable[[], bool], name: str, log: Path) -> None:
    """Wait until `url` returns 200 and the process `pid` or a child listens on its port, which another server may have
    taken.

    Raises:
        ServiceError: the process ended, or did not respond in time.
    """
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if answers(url) and _listens(pid, urlsplit(url).port):
            return
        if not alive():
            raise ServiceError(f"{name} exited before it responded. Log: {log}{last_line(log)}")
        time.sleep(0.2)
    raise ServiceError(f"{name} did not respond at {url} within {PATIENCE:.0f} s. Log: {log}")


def _listens(pid: int, port: int | None) -> bool:
    """Whether a process or one of its children listens on a port."""
    family: list[psutil.Process] = []
    with suppress(psutil.Error):
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for each in family:
        with suppress(psutil.Error):
            if any(at.status == psutil.CONN_LISTEN and at.laddr.port == port for at in each.net_connections("tcp")):
                return True
    return False


def answers(url: str) -> bool:
    """Whether a GET returns 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def jobs_in(folder: Path) -> list[psutil.Process]:
    """Living processes of training jobs whose job file is in `folder`, from any run."""
    jobs = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            names_it = any(word.startswith(f"{folder}/") for word in process.cmdline())
            if names_it and JOB_TAG in process.environ() and process.status() != psutil.STATUS_ZOMBIE:
                jobs.append(process)
    return jobs


def end_trees(pids: Iterable[int], grace: float) -> None:
    """Send SIGTERM to processes and their descendants, and SIGKILL to those left after `grace` seconds."""
    tree: list[psutil.Process] = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(pid)
            tree += [root, *root.children(recursive=True)]
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for process in tree:
            with suppress(psutil.NoSuchProcess):
                end(process)
        _, tree = psutil.wait_procs(tree, timeout=grace)
        if not tree:
            return


def free_port(preferred: int = 0) -> int:
    """`preferred` if it is free, else one that the system picks."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ServiceError("No free port on 127.0.0.1.")


def last_line(log: Path) -> str:
    """The last line of a log as ` (last line: ...)`; empty if there is none."""
    try:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    return f" (last line: {lines[-1].strip()[:200]})" if lines else ""
