"""A pool of sandboxed worker processes. A worker is reused after a response, and killed if it hangs or fails."""

import os
import select
import signal
import subprocess
import time
from dataclasses import dataclass

from cupola_trainer.scoring import sandbox
from cupola_trainer.scoring.confined.main import END, FAILED, HELD, READY, UNCONFINED

STARTING = 10.0
"""Seconds that a process may take to start on a busy machine, in addition to the response's time limit."""


@dataclass
class Worker:
    """A process of `confined.main`."""

    process: subprocess.Popen[bytes]

    def verdicts(self, request: bytes, tests: int, seconds: float) -> bytes | None:
        """One byte per test, HELD or FAILED; fewer if the program exited early or timed out; None if it never
        started."""
        deadline = time.monotonic() + STARTING
        self._write(request, deadline)
        if self._read(1, deadline) != READY:
            return None
        return self._read(tests + 1, time.monotonic() + seconds)

    def end(self, patience: float = 0.0) -> str:
        """Wait for the process to exit, or kill its group after `patience` seconds. Returns the start of its stderr."""
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        pipes = self.process.stdin, self.process.stdout, self.process.stderr
        assert all(pipes)
        note = os.read(pipes[2].fileno(), 500) if _ready(pipes[2].fileno(), select.POLLIN, 0) else b""  # type: ignore[union-attr]
        for pipe in pipes:
            pipe.close()  # type: ignore[union-attr]
        return note.decode(errors="replace").strip()

    def _write(self, request: bytes, deadline: float) -> None:
        assert self.process.stdin
        descriptor, left = self.process.stdin.fileno(), memoryview(request)
        while left and _ready(descriptor, select.POLLOUT, deadline):
            try:
                left = left[os.write(descriptor, left) :]
            except BrokenPipeError:
                return

    def _read(self, size: int, deadline: float) -> bytes:
        """Up to `size` bytes that arrive before the deadline or END."""
        assert self.process.stdout
        descriptor, read = self.process.stdout.fileno(), b""
        while len(read) < size and _ready(descriptor, select.POLLIN, deadline):
            part = os.read(descriptor, size - len(read))
            read += part
            if not part or END in part:
                break
        return read


idle: list[Worker] = []
os.register_at_fork(after_in_child=idle.clear)


def count_held(request: bytes, tests: int, seconds: float) -> int:
    """How many tests pass; 0 if not every test has a verdict in time.

    Raises:
        ConfigError: this machine cannot sandbox a process.
        RuntimeError: no process could be started.
    """
    for _ in range(2):  # a worker exits with the thread that started it, so the first may just have gone
        worker = _take()
        verdicts = worker.verdicts(request, tests, seconds)
        if verdicts is not None and verdicts.endswith(END):
            idle.append(worker)
        else:
            reason = worker.end(patience=1.0 if verdicts is None else 0.0)
        if verdicts is not None:
            whole = len(verdicts) == tests + 1 and not verdicts.strip(HELD + FAILED + END)
            return verdicts.count(HELD) if whole else 0
        if worker.process.returncode == UNCONFINED:
            raise sandbox.unconfined()
    raise RuntimeError(f"No sandboxed process started within {STARTING:.0f} s: {reason}")


def _take() -> Worker:
    while True:
        try:
            worker = idle.pop()
        except IndexError:
            break
        if worker.process.poll() is None:
            return worker
        worker.end()
    process = subprocess.Popen(
        sandbox.command(), cwd="/", env={}, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin
    os.set_blocking(process.stdin.fileno(), False)
    return Worker(process)


def _ready(descriptor: int, event: int, deadline: float) -> bool:
    """Wait until a file is readable or writable; False if the deadline passes first."""
    waiting = select.poll()
    waiting.register(descriptor, event)
    return bool(waiting.poll(max(0.0, deadline - time.monotonic()) * 1000))
