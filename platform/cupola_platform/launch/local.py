"""A training job on this machine: torchrun in its own process, cleaned up completely when it ends."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil

from cupola_platform.errors import ConfigError
from cupola_platform.launch import tether
from cupola_platform.launch.capacity import Capacity
from cupola_platform.launch.rendezvous import torchrun
from cupola_platform.security.credential import without_credentials

GRACE_SECONDS = 25.0
"""From SIGTERM to SIGKILL: the time for ranks to finish a step and save."""

DEVICES = Path("/dev")

JOB_TAG = "CUPOLA_JOB_TAG"
"""Environment variable of a job's processes that says which start of the job they belong to."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def gpus() -> int:
    """NVIDIA GPUs that this process may use. Asks the driver's files: importing torch here would take seconds."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = len([path for path in DEVICES.glob("nvidia[0-9]*") if path.name.removeprefix("nvidia").isdecimal()])
    return there if visible is None else min(there, len([name for name in visible.split(",") if name.strip()]))


def host_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def room() -> tuple[int, str]:
    """Ranks that this machine runs at once, and what they are counted in: one per GPU, or else one per core."""
    return (gpus(), "GPUs") if gpus() else (cores(), "cores")


class LocalJob:
    """One torchrun and its ranks. As a context manager it stops the job on exit.

    Ranks have their own sessions and may outlive torchrun, so each carries a tag in its environment by which it is
    found and ended once torchrun is gone.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str], log: Path, folder: Path) -> None:
        """`folder` is the ranks' rendezvous folder; it is removed when the job ends."""
        self.log, self._folder = log, folder
        self._command = command
        self._tag = uuid.uuid4().hex
        self._environment = {**environment, JOB_TAG: self._tag}
        self._grace = GRACE_SECONDS
        self._started = threading.Event()
        self._ended = threading.Event()  # not Thread.join: a signal raised in it marks a running thread as ended
        self._process: subprocess.Popen[bytes] | None = None
        self._error: OSError | None = None
        # The tether follows the thread that started the process, so this thread stays until the process ends.
        self._keeper = threading.Thread(target=self._keep, name=f"job {log.stem}", daemon=True)
        self._keeper.start()
        self._started.wait()
        if self._error is not None:
            raise ConfigError(
                f"Cannot start a job with the log {log}: {self._error.strerror}. Make the log's folder writable."
            ) from self._error

    @property
    def pid(self) -> int:
        """PID of torchrun's parent, which ends the way torchrun ends."""
        return self._torchrun.pid

    outlives = False

    @property
    def name(self) -> str:
        """As a person would look for it."""
        return f"process {self.pid}"

    def waits(self) -> None:
        """A local job starts at once."""

    def reason(self) -> None:
        """No engine ends a local job."""

    def poll(self) -> int | None:
        """torchrun's exit code once it and all ranks have ended, else None. It is 1 if any rank failed."""
        return self._torchrun.returncode if self._ended.is_set() else None

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait up to `timeout` seconds (None waits for the end), then `poll`."""
        self._ended.wait(timeout)
        return self.poll()

    def stop(self, grace_seconds: float = GRACE_SECONDS) -> int:
        """End the job: SIGTERM, so that the ranks save, then SIGKILL after `grace_seconds` to those left.

        Returns:
            torchrun's exit code, negative if a signal ended it.
        """
        self._grace = grace_seconds
        ranks = self._processes()
        if self._torchrun.poll() is None:
            self._torchrun.terminate()
        if not self._ended.wait(grace_seconds):
            for process in {*ranks, *self._processes()}:
                _quietly(process.kill)
        self._ended.wait()
        return self._torchrun.returncode

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.poll() is None:
            self.stop()

    @property
    def _torchrun(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None
        return self._process

    def _keep(self) -> None:
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("ab") as out:  # a file: surviving ranks would keep a pipe open
                self._process = subprocess.Popen(
                    self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=out,
                    stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            self._error = error
            shutil.rmtree(self._folder, ignore_errors=True)
            return
        finally:
            self._started.set()
        try:
            self._process.wait()
            self._end_orphans()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._ended.set()

    def _end_orphans(self) -> None:
        """Ranks survive when torchrun itself is killed: let them save, then end them."""
        orphans = self._processes()
        for process in orphans:
            _quietly(process.terminate)
        deadline = time.monotonic() + self._grace
        while orphans and time.monotonic() < deadline:
            _, orphans = psutil.wait_procs(orphans, timeout=0.5)
        for process in {*orphans, *self._processes()}:
            _quietly(process.kill)

    def _processes(self) -> list[psutil.Process]:
        """All running processes of this job."""
        return [process for process in psutil.process_iter() if _tag_of(process) == self._tag]


class LocalLauncher:
    """Starts training jobs with torchrun on this machine."""

    def __init__(
        self,
        max_processes: int | None = None,
        module: str = "cupola_trainer",
        *,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            max_processes: ranks that may run at once; None for one per GPU, or per core where there is none.
            module: the module each rank runs, with the job file as its only argument.
            environment: environment variables for the ranks of all jobs.
        """
        self.max_processes = max_processes or room()[0]
        self.module = module
        self.environment = dict(environment or {})

    def check(self, processes: int) -> None:
        """Refuse a job with more ranks than this machine may run.

        Raises:
            ConfigError: names both numbers.
        """
        if processes > self.max_processes:
            count, unit = room()
            raise ConfigError(
                f"The job needs {processes} processes, but this machine runs at most {self.max_processes} (it has "
                f"{count} {unit}). Lower tp x pp x cp x dp, or run it on a cluster: --run-on NAME."
            )

    def start(
        self, job_file: Path, *, processes: int, log: Path, env: Mapping[str, str] | None = None,
        fallbacks: Sequence[tuple[Path, int]] = (), restarts: int = 0,
    ) -> LocalJob:  # fmt: skip
        """Start a job, with its output appended to `log`. It ends when this process ends.

        Args:
            processes: ranks, each with OMP_NUM_THREADS threads, or else its share of the cores.
            env: environment variables for the ranks, on top of this process's own.

        Raises:
            ConfigError: more ranks than this machine may run, or the log cannot be written.
        """
        self.check(processes)
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // processes))
        folder = Path(tempfile.mkdtemp(prefix="cupola-job-"))
        ranks, variables = torchrun(processes, folder)
        command = [sys.executable, tether.__file__, str(os.getpid()), *ranks, "-m", self.module, str(job_file)]
        ours = {"OMP_NUM_THREADS": threads, **self.environment, **(env or {})}
        environment = {**without_credentials(os.environ), **ours, **variables}
        return LocalJob(command, environment, log, folder)

    def attach(self, job_file: Path) -> None:
        """None: a local job ends with the process that started it."""

    def capacity(self) -> Capacity:
        """This machine is always up; it counts as busy while a rank of any job runs."""
        busy = any(_tag_of(process) for process in psutil.process_iter())
        return Capacity(nodes=1, free=0 if busy else 1)


def _tag_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(JOB_TAG) if process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def _quietly(act: Callable[[], None]) -> None:
    with suppress(psutil.NoSuchProcess):
        act()
