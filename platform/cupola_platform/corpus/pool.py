"""A pool of worker processes for plain functions.

`multiprocessing` does not fit here: forking a process with threads is unsafe, spawning imports the caller's main
module again (seconds and hundreds of MB inside a Prefect run), and its workers outlive a parent that is killed. Ours
are `python -m cupola_platform.corpus.worker`, fed through a pipe: they import what the function needs, and end when the
pipe does.
"""

import os
import pickle
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType
from typing import IO, Any, Self, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_HEADER = struct.Struct("<Q")


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def send(stream: IO[bytes], value: Any) -> None:
    """Write one pickled message with its length before it."""
    data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(_HEADER.pack(len(data)))
    stream.write(data)
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """Read one message that `send` wrote. Raises EOFError at the end of the stream."""
    header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise EOFError
    (length,) = _HEADER.unpack(header)
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return pickle.loads(data)


class WorkerPool:
    """`map` over worker processes, results in order."""

    def __init__(self, workers: int) -> None:
        """Start `workers` processes; 0 for one a core."""
        self.workers = workers or available_cores()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="corpus")

    def __enter__(self) -> Self:
        for _ in range(self.workers):
            process = _start()
            self._processes.append(process)
            self._idle.put(process)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            for process in self._processes:
                process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            assert process.stdin is not None
            assert process.stdout is not None
            if kind is None:
                process.stdin.close()
            process.wait()
            process.stdout.close()

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """`function` of each item, in order; at most two items a worker are in flight. `function` is a module's own.

        Raises:
            whatever `function` raises.
            RuntimeError: a worker process died.
        """
        pending: deque[Future[R]] = deque()
        for item in items:
            pending.append(self._threads.submit(self._call, function, item))
            if len(pending) >= 2 * self.workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _call(self, function: Callable[[T], R], item: T) -> R:
        process = self._idle.get()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            send(process.stdin, (function, item))
            error, result = receive(process.stdout)
        except (EOFError, BrokenPipeError) as broken:
            raise RuntimeError(
                f"A worker process of the corpus died (exit status {process.wait()}); out of memory? "
                "Try fewer workers or a smaller max_document_bytes."
            ) from broken
        finally:
            self._idle.put(process)
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "cupola_platform.corpus.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
