"""Confined processes that wait for responses. A finished one waits for the next; a late or lost one is ended."""

import os
import select
import signal
import subprocess
import time
from dataclasses import dataclass

from cupola_trainer.scoring import sandbox
from cupola_trainer.scoring.confined.main import END, FAILED, HELD, READY, UNCONFINED

STARTING = 10.0
"""Seconds that a process may take to start on a busy machine, beside the response's own."""


@dataclass
class Worker:
    """A process of `confined.main`."""

    process: subprocess.Popen[bytes]

    def verdicts(self, request: bytes, tests: int, seconds: float) -> bytes | None:
        """A byte, HELD or FAILED, for each test; fewer where the program ended early or late;
        none where it never began."""
        deadline = time.monotonic() + STARTING
        self._write(request, deadline)
        if self._read(1, deadline) != READY:
            return None
        return self._read(tests + 1, time.monotonic() + seconds)

    def end(self, patience: float = 0.0) -> str:
        """End it and all its processes, by force after some seconds;
        the beginning of what it said on standard error."""
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
        """Up to `size` bytes: those that come in time, before the end."""
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
    """How many tests hold; 0 where not every one came to a verdict in time.

    Raises:
        ConfigError: this machine cannot confine a process.
        RuntimeError: no process starts.
    """
    for _ in range(2):  # a worker ends with the thread that started it: the first may be just gone
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
    raise RuntimeError(f"No process for a model's code was started within {STARTING:.0f} s: {reason}")


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
    """Wait until a file can be read or written; false where the deadline comes first."""
    waiting = select.poll()
    waiting.register(descriptor, event)
    return bool(waiting.poll(max(0.0, deadline - time.monotonic()) * 1000))
