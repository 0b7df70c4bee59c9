"""A rank that hangs is found, every living rank's stacks are dumped, and the job ends, to be restarted.

A stopped rank leaves the others waiting in a collective. Each rank has a thread that sees whether its main thread still
gets anything done; the first to find that it does not for too long tells the others through a file. Every thread also
touches a heartbeat, so that a rank whose thread is silent too can be named, and be killed before it wakes up and writes.
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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

HUNG = 75
"""Exit status of a rank that ended itself because the job hung."""
FOLDER = "heartbeats"
REPORT = "hang.json"

log = logging.getLogger(__name__)


class Watchdog:
    """Watches this rank's main thread, which calls `beat` wherever it gets on."""

    def __init__(self, output: Path, rank: int, seconds: float) -> None:
        """
        Args:
            output: the job's folder, seen by every rank.
            seconds: without a beat, after which the job hangs; 0 watches nothing.
        """
        self.output, self.rank, self.seconds = output, rank, seconds
        self.tick = min(seconds / 4, 5.0)
        self.step = 0
        self.paused = False
        self.last = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch. Heartbeats of an earlier start must be gone by now."""
        if self.seconds:
            (self.output / FOLDER).mkdir(parents=True, exist_ok=True)
            self.beat()
            self._touch()  # at once: a rank that stops before its first tick is to be named too
            self._thread.start()

    def stop(self) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def beat(self, *_: object) -> None:
        """The main thread got something done."""
        self.last = time.monotonic()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Do something that may take long, and that has a time-out of its own."""
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
            late = not self.paused and time.monotonic() - self.last > self.seconds
            if late and not report.exists():
                write_report(report, self._reason())
            if late or report.exists():
                self._give_up()

    def _touch(self) -> None:
        process = psutil.Process()
        place = {"host": socket.gethostname(), "pid": process.pid, "started": process.create_time(), "step": self.step}
        with suppress(OSError):  # a full disk is no hang
            (self.output / FOLDER / f"rank_{self.rank:05d}.json").write_text(json.dumps(place))

    def _silent(self) -> list[Path]:
        """The heartbeats of ranks whose watchdog has stopped as well."""
        now = time.time()
        return [
            path
            for path in sorted((self.output / FOLDER).glob("rank_*.json"))
            if now - path.stat().st_mtime > 3 * self.tick
        ]

    def _reason(self) -> str:
        waited = f"{time.monotonic() - self.last:.0f} s"
        ranks = ", ".join(path.stem.removeprefix("rank_").lstrip("0") or "0" for path in self._silent())
        if ranks:
            return f"rank {ranks} hangs at step {self.step}: it does not answer, and nothing has got on for {waited}"
        return f"the job hangs at step {self.step}: every rank answers, but nothing has got on for {waited}"

    def _give_up(self) -> None:
        print(f"rank {self.rank}: the job hangs at step {self.step}; the stacks of this rank:", file=sys.stderr)
        faulthandler.dump_traceback(sys.stderr)
        sys.stderr.flush()
        time.sleep(2 * self.tick)  # until every other living rank has seen the report
        for path in self._silent():
            with suppress(OSError, ValueError, psutil.Error):
                _kill(json.loads(path.read_bytes()))
        os._exit(HUNG)


def write_report(path: Path, reason: str) -> None:
    """Say why the job ends, in one piece."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps({"reason": reason}))
    temporary.replace(path)


def _kill(place: dict[str, object]) -> None:
    """A rank given up must not wake up later and write."""
    process = psutil.Process(int(str(place["pid"])))
    if place["host"] == socket.gethostname() and process.create_time() == place["started"]:
        process.send_signal(signal.SIGKILL)
