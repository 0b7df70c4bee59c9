"""What a node of a job does if it shares no folder with the others: fetch the inputs and the newest state, start its
ranks, and send what they write while they run.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from cupola_platform.artifacts import MANIFEST, read
from cupola_platform.errors import ConfigError, CupolaError, StoreError, refusal
from cupola_platform.unshared import references
from cupola_platform.unshared.cache import Cache
from cupola_platform.unshared.contract import CACHE_FOLDER, GIB, Contract
from cupola_platform.unshared.files import HANG, REPORTS, RESULT, Files, check_inside
from cupola_platform.unshared.parts import Parts

LOOK_EVERY = 2.0
"""Seconds between two looks at what the ranks have written."""
TO_COMPLETE = 600.0
"""Seconds for the other nodes to upload their parts of the last checkpoint once this node has uploaded its own."""
AFTER_FAILURE = 20.0
"""Seconds to upload what is there after the ranks failed."""
INPUTS = "inputs"
"""Name in the store of what was sent along with the job."""

Start = Callable[[Sequence[str]], "subprocess.Popen[bytes]"]


class Agent:
    """One node of a job, for one start of it."""

    def __init__(self, contract: Contract, job_file: str, is_ranks: Callable[[str], bool]) -> None:
        """
        Args:
            job_file: name of the job's file.
            is_ranks: tells which files of the job's folder its ranks write, by path.
        """
        self.contract, self.name = contract, job_file
        top = contract.top()
        self.objects = top.under(contract.section)
        self.cache = Cache(contract.home / CACHE_FOLDER, contract.cache_gib * GIB, top)
        self.files = Files(self.objects, contract.folder, is_ranks)
        self.parts = Parts(self.objects, contract.section, contract.folder)
        self._one_at_a_time = threading.Lock()
        self._refused: dict[str, str] = {}
        self._local: list[Path] = []

    def run(self, command: Sequence[str], start: Start) -> int:
        """Run a node's ranks with the job's file as their last argument. Returns their exit status.

        Args:
            start: starts them, and says what a SIGTERM to this process does.
        """
        try:
            self._restore()
            job = self.contract.folder / self.name
            inputs = sorted(references.artifacts_of(job.read_text()))
            with self.cache.holding(inputs) as fetched:
                self._say(f"fetched {fetched.new:,} bytes of inputs, {fetched.kept:,} were there")
                resolved = job.with_name(f".{job.name}")
                resolved.write_text(references.resolve(job.read_text(), self.contract.home))
                status = self._supervise(start([*command, str(resolved)]))
                kept, size = self.cache.in_part(inputs)
                if size:
                    self._say(f"has {kept:,} of the {size:,} bytes of its token shards")
                return status
        except (CupolaError, OSError) as error:
            known = error if isinstance(error, CupolaError) else ConfigError(refusal(error) or str(error))
            self._report(known)
            return known.exit_code

    def _restore(self) -> None:
        """Make the job's folder on this node what the store says, with every whole checkpoint and no other."""
        folder = self.contract.folder
        folder.mkdir(parents=True, exist_ok=True)
        self.files.pull(but=REPORTS, exactly=True)
        self.parts.unstage()
        whole = {(each.folder, each.manifest.digest): each for each in self.parts.whole()}
        here = {(each.path.relative_to(folder).as_posix(), each.digest): each for each in self.parts.local()}
        for place in here.keys() - whole.keys():
            shutil.rmtree(here[place].path)
        for place in whole.keys() - here.keys():
            shutil.rmtree(folder / place[0], ignore_errors=True)
            self.parts.place(whole[place])
        inputs = self.objects.under(INPUTS)
        for name in inputs.sizes():
            inputs.download(name, self.contract.home / check_inside(name))

    def _supervise(self, ranks: "subprocess.Popen[bytes]") -> int:
        end = threading.Event()
        senders = [
            threading.Thread(target=self._repeat, args=(work, end), daemon=True)
            for work in (self._send_files, self._send_parts)
        ]
        for sender in senders:
            sender.start()
        status = ranks.wait()
        end.set()
        for sender in senders:
            sender.join()
        return self._finish(status if status >= 0 else 128 - status)

    def _finish(self, status: int) -> int:
        """Send the rest. A result counts only once the checkpoint that it names is whole in the store."""
        until = time.monotonic() + (AFTER_FAILURE if status else TO_COMPLETE)
        while not (self._attempt(self._send_parts) and self._attempt(self._send_result)):
            if time.monotonic() > until:
                self._say("gives up: not all that this node wrote is in the store, or another node's part is missing")
                (self.contract.folder / RESULT).unlink(missing_ok=True)
                return status or 1
            time.sleep(LOOK_EVERY)
        return status

    def _send_files(self) -> None:
        with self._one_at_a_time:
            self._forget()
            self.files.push(but={RESULT, *self._lesser_report()})

    def _send_parts(self) -> None:
        self.parts.stage()
        self._send_files()  # a whole checkpoint never comes before the metrics and sample logs of its steps
        self.parts.send()
        self._forget(again=True)

    def _forget(self, *, again: bool = False) -> None:
        """Remove what rank 0 has removed, before the store learns of the rollback that it was removed for."""
        if not any("training.json" in each.held for each in self.parts.made()):  # rank 0 is not on this node
            return
        local = [each.path for each in self.parts.local()]
        if again or local != self._local:
            self.parts.drop(local)
            self._local = local

    def _lesser_report(self) -> set[str]:
        """This node's report of a hang, if it names no rank: another node may know which one hangs."""
        report = self.contract.folder / HANG
        if not report.exists() or json.loads(report.read_bytes()).get("ranks"):
            return set()
        return {HANG} if self.files.get(HANG) else set()

    def _send_result(self) -> None:
        """Send the result, if the ranks of this node wrote one. Raises StoreError while its checkpoint is not whole."""
        result = self.contract.folder / RESULT
        if not result.exists():
            return
        folder = json.loads(result.read_bytes())["folder"]
        if (self.contract.folder / folder / MANIFEST).exists():
            digest = read(self.contract.folder / folder).digest
            if not any((each.folder, each.manifest.digest) == (folder, digest) for each in self.parts.whole()):
                raise StoreError(f"{folder} waits for the parts of other nodes.")
        self.files.push()

    def _repeat(self, work: Callable[[], None], end: threading.Event) -> None:
        while not end.wait(LOOK_EVERY):
            self._attempt(work)

    def _attempt(self, work: Callable[[], None]) -> bool:
        """Do some work with the store, and say once why it failed."""
        try:
            work()
        except (CupolaError, OSError) as error:
            if self._refused.get(work.__name__) != str(error):
                self._say(f"will retry: {error}")
            self._refused[work.__name__] = str(error)
            return False
        self._refused.pop(work.__name__, None)
        return True

    def _report(self, error: CupolaError) -> None:
        content = json.dumps({"type": type(error).__name__, "message": f"{_name()}: {error}"})
        self._say(f"error: {error}")
        with suppress(StoreError):  # the log has the line
            self.files.put("error.json", content.encode())

    def _say(self, line: str) -> None:
        print(f"cupola: {_name()}: {line}", file=sys.stderr, flush=True)


def _name() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()
