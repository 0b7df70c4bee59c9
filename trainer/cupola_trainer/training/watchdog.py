"""Detect a hung rank, dump the stacks of all live ranks, and end the job so that it can be restarted.

A stopped rank leaves the others waiting in a collective. On each rank a thread watches whether the main thread makes
progress; the first to time out notifies the others through a file. The threads also write heartbeats, so that a rank
whose thread has stopped too can be named, and killed before it wakes up and writes.

Where nodes share no folder, the ranks of each node watch each other, and all nodes time out at about the same time.
"""

import faulthandler
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cupola_platform.launch.starts import HANG_REPORT, HEARTBEATS
from cupola_platform.liveness import lives, start_of
from cupola_platform.unshared.contract import is_unshared

FINGERPRINTED = False  # keeps a job alive

HUNG = 75
"""Exit status of a rank that exits because the job hangs."""
FOLDER = HEARTBEATS
REPORT = HANG_REPORT

log = logging.getLogger(__name__)


class Listener:
    """Watches the heartbeats in a folder for those that have stopped.

    A heartbeat is a counter. Only its changes matter, timed by this process's monotonic clock: machines' clocks differ,
    and may be adjusted while a job runs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._heard: dict[Path, tuple[bytes, float]] = {}

    def listen(self) -> None:
        """Read the heartbeats once. A heartbeat counts as silent since the first reading of its current value."""
        heard = {path: _content(path) for path in self.folder.glob("rank_*.json")}
        now = time.monotonic()
        self._heard = {
            path: self._heard[path] if path in self._heard and self._heard[path][0] == content else (content, now)
            for path, content in heard.items()
        }

    def silent(self, seconds: float) -> list[Path]:
        """Heartbeats unchanged for `seconds`, by rank."""
        until = time.monotonic() - seconds
        return sorted(path for path, (_, since) in self._heard.items() if since < until)

    def all_silent(self, seconds: float) -> bool:
        """Whether there are heartbeats and all are unchanged for `seconds`."""
        return bool(self._heard) and len(self.silent(seconds)) == len(self._heard)


class Watchdog:
    """Watches this rank's main thread, which calls `beat` whenever it makes progress."""

    def __init__(self, output: Path, rank: int, seconds: float) -> None:
        """
        Args:
            output: the job's folder.
            seconds: without a beat, after which the job counts as hung; 0 disables the watchdog.
        """
        self.output, self.rank, self.seconds = output, rank, seconds
        self.tick = min(seconds / 4, 5.0)
        self.step = 0
        self.beats = 0
        self.others = Listener(output / FOLDER)
        self.paused = False
        self.last = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Start watching. Heartbeats of an earlier start must have been removed."""
        if self.seconds:
            (self.output / FOLDER).mkdir(parents=True, exist_ok=True)
            self.beat()
            self._touch()  # now, so that a rank that stops before its first tick can be named too
            self._thread.start()

    def stop(self) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def beat(self, *_: object) -> None:
        """Record that the main thread made progress."""
        self.last = time.monotonic()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Suspend the timeout around something slow that has a timeout of its own."""
        self.paused = True
        try:
            yield
        finally:
            self.paused = False
            self.beat()

    def _watch(self) -> None:
        report = self.output / REPORT
        while not self._end.wait(self.tick):
            self._touch()
            idle = time.monotonic() - self.last
            if idle > self.tick or report.exists():  # during normal training, don't read the other ranks' files
                self.others.listen()
            late = not self.paused and idle > self.seconds
            if late and not report.exists():
                write_report(report, *self._reason())
            if late or report.exists():
                self._give_up()

    def _touch(self) -> None:
        self.beats += 1
        pid = os.getpid()
        place = {
            "host": socket.gethostname(),
            "pid": pid,
            "start": start_of(pid),
            "step": self.step,
            "beat": self.beats,
        }
        with suppress(OSError):  # a full disk is not a hang
            (self.output / FOLDER / f"rank_{self.rank:05d}.json").write_text(json.dumps(place))

    def _silent(self) -> list[Path]:
        """Heartbeats of ranks whose watchdog has stopped too."""
        return self.others.silent(2.5 * self.tick)

    def _reason(self) -> tuple[str, list[int]]:
        """Why the job ends, and the ranks that do not respond."""
        waited = f"{time.monotonic() - self.last:.0f} s"
        ranks = [int(path.stem.removeprefix("rank_")) for path in self._silent()]
        if ranks:
            names = ", ".join(str(rank) for rank in ranks)
            return f"rank {names} hangs at step {self.step}: it does not respond, and no progress for {waited}", ranks
        every = f"every rank on {socket.gethostname()}" if is_unshared() else "every rank"
        return f"the job hangs at step {self.step}: {every} responds, but no progress for {waited}", []

    def _give_up(self) -> None:
        print(f"rank {self.rank}: the job hangs at step {self.step}; the stacks of this rank:", file=sys.stderr)
        faulthandler.dump_traceback(sys.stderr)
        sys.stderr.flush()
        time.sleep(2 * self.tick)  # until every other live rank has seen the report
        self.others.listen()
        for path in self._silent():
            with suppress(OSError, ValueError, KeyError):
                _kill(json.loads(path.read_bytes()))
        os._exit(HUNG)


def write_report(path: Path, reason: str, ranks: Sequence[int]) -> None:
    """Write why the job ends, and which ranks do not respond, atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps({"reason": reason, "ranks": list(ranks)}))
    temporary.replace(path)


def _kill(place: dict[str, object]) -> None:
    """Kill a hung rank, which must not wake up later and write."""
    pid = int(str(place["pid"]))
    if place["host"] == socket.gethostname() and lives(pid, str(place["start"])):
        os.kill(pid, signal.SIGKILL)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
