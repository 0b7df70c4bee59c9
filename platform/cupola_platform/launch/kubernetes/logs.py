"""What the pods of a job print, copied into the job's log: every line once, whichever process watches.

A stream for each pod, opened again where it ended until the pod has ended too. The place is kept beside the job, so a
process that attaches later goes on there; while two watch, only the one with the lock copies.
"""

import asyncio
import fcntl
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

from cupola_platform.errors import CupolaError
from cupola_platform.launch.kubernetes.api import Api, MissingError, start
from cupola_platform.launch.kubernetes.manifests import NODE
from cupola_platform.launch.kubernetes.pods import has_ended, has_started, node_of

PLACES = "kubernetes-logs.json"
"""In a job's folder: how far each pod's output was copied."""
AGAIN = 1.0
"""Seconds before a stream that ended is opened again."""
UNWATCHED = 120.0
"""Seconds without a call of `follow` after which the copying stops: whoever watched the job has dropped it."""


class Logs:
    """The copying of one job's output, in the background for as long as `follow` is called."""

    def __init__(self, api: Api, folder: Path, log: Path) -> None:
        self.api, self.log = api, log
        self._file = folder / PLACES
        self._guard = threading.Lock()
        self._lock: int | None = None
        self._followed = 0.0
        self._places: dict[str, list[Any]] = {}
        self._streams: dict[str, Future[None]] = {}
        self._ended: set[str] = set()
        self.ended = threading.Event()
        """Set when a pod's output ends, which is the moment to look why: failed pods are soon deleted."""

    def follow(self, pods: Sequence[Mapping[str, Any]]) -> None:
        """Copy what these pods print, from now on or from where an earlier process stopped. Call it again and again."""
        with self._guard:
            self._followed = time.monotonic()
            if not self._is_ours():
                return
            uids = {pod["metadata"]["uid"]: pod for pod in pods}
            gone = self._streams.keys() - uids.keys()
            self._ended |= {uid for uid, pod in uids.items() if has_ended(pod)} | gone
            for uid, pod in uids.items():
                if uid not in self._streams and has_started(pod):
                    prefix = f"node {node_of(pod)}: ".encode()
                    self._streams[uid] = start(self._copy(uid, pod["metadata"]["name"], prefix))

    def finish(self, seconds: float = 30.0) -> None:
        """Copy what ended pods have left, and stop."""
        self._ended |= self._streams.keys()
        wait(self._streams.values(), seconds)
        self._release()

    def _is_ours(self) -> bool:
        if self._lock is None:
            descriptor = os.open(self._file.with_suffix(".lock"), os.O_CREAT | os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(descriptor)
                return False
            self._lock = descriptor
            with suppress(FileNotFoundError, ValueError):
                self._places = json.loads(self._file.read_text())
            start(self._release_if_forgotten())
        return True

    def _release(self) -> None:
        """Stop copying, and let another process or another watcher of this one go on."""
        with self._guard:
            for stream in self._streams.values():
                stream.cancel()
            self._streams.clear()
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    async def _release_if_forgotten(self) -> None:
        while self._lock is not None:
            await asyncio.sleep(UNWATCHED / 10)
            if time.monotonic() - self._followed > UNWATCHED:
                self._release()

    async def _copy(self, uid: str, name: str, prefix: bytes) -> None:
        while True:
            last = uid in self._ended  # asked before the stream, which then has everything
            try:
                await self._stream(uid, name, prefix)
            except MissingError:
                return
            except CupolaError:
                last = False
            self.ended.set()
            if last:
                return
            await asyncio.sleep(AGAIN)

    async def _stream(self, uid: str, name: str, prefix: bytes) -> None:
        """Copy a pod's lines that are newer than the place. Lines may have the same time, so those are counted."""
        at, count = self._places.get(uid, ["", 0])
        query = {"container": NODE, "follow": "true", "timestamps": "true"}
        if at:
            query["sinceTime"] = f"{at[:19]}Z"
        seen = 0
        with self.log.open("ab", buffering=0) as log:
            async for line in self.api.lines(f"/api/v1/namespaces/{self.api.namespace}/pods/{name}/log", query):
                stamp, _, text = line.partition(b" ")
                moment = stamp.decode(errors="replace")
                if moment < at:
                    continue
                seen = seen + 1 if moment == at else 1
                if moment == at and seen <= count:
                    continue
                log.write(prefix + text + b"\n")
                at, count = moment, seen
                self._keep(uid, at, count)

    def _keep(self, uid: str, at: str, count: int) -> None:
        self._places[uid] = [at, count]
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps(self._places))
        partial.replace(self._file)
