"""Ranks as slots of Prefect's global concurrency limits, so that all runs of a server share a place.

A slot's lease is renewed while its holder lives. The leases of this workspace's dead processes are given back by
whichever run of the workspace next looks; those of other machines end within two minutes. Prefect is called by HTTP,
never imported.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from cupola_flows.servers.prefect_api import PrefectApi
from cupola_platform.errors import ServiceError, StageFailedError
from cupola_platform.liveness import lives, start_of
from cupola_platform.strict import Strict

LEASE = 60.0
"""Seconds that a lease lasts without renewal, the fewest that Prefect allows."""
RENEW_EVERY = 15.0
ASK_EVERY = 2.0
"""Seconds between questions for slots that are taken."""
MISSED = 3
"""Questions in a row that get no answer before a job goes on without slots."""
_LIMITS = "/v2/concurrency_limits"


class LeaseRecord(Strict):
    """A file `leases/ID.json` of the workspace: who holds a lease."""

    host: str
    pid: int
    start: str
    """`liveness.start_of` the process."""


@dataclass(frozen=True)
class PrefectLimits:
    """The global concurrency limits of a Prefect server."""

    api: PrefectApi
    folder: Path
    """Records of the leases of this workspace's processes."""

    def set(self, limit: str, slots: int) -> None:
        """Create a limit, or change how many slots it has.

        Raises:
            ServiceError: the server refuses, or does not respond.
        """
        try:
            with self.api.client(timeout=60) as client:
                made = client.patch(f"{_LIMITS}/{limit}", json={"limit": slots})
                if made.status_code == 404:
                    made = client.post(f"{_LIMITS}/", json={"name": limit, "limit": slots, "active": True})
        except httpx.HTTPError as error:
            raise ServiceError(f"{self.api.url} does not respond ({type(error).__name__}).") from None
        if made.status_code >= 400 and made.status_code != 409:  # another run has just created it
            raise ServiceError(f"Prefect refused the limit {limit}: {made.status_code} {made.text[:200]}")

    @contextmanager
    def taken(self, limit: str, slots: int, *, wait: bool, waits: Callable[[str], None]) -> Iterator[None]:
        """Hold slots while the block runs. A server that does not respond stops nothing.

        Args:
            wait: whether to wait until the slots are free; else they are taken once they are.
            waits: called with what is taken, such as `8 of 8`, whenever that changes.

        Raises:
            StageFailedError: the limit has fewer slots than are wanted.
        """
        with self.api.client(timeout=30) as client:
            holding = Holding(client, self.folder, limit, slots)
            holding.take(wait=wait, waits=waits)
            renewing = threading.Thread(target=holding.renew, name=f"slots of {limit}", daemon=True)
            renewing.start()
            try:
                yield
            finally:
                holding.done.set()
                renewing.join()
                holding.release()


class Holding:
    """Slots of one limit, for one job."""

    def __init__(self, client: httpx.Client, folder: Path, limit: str, slots: int) -> None:
        self.client, self.folder, self.limit, self.slots = client, folder, limit, slots
        self.lease: str | None = None
        self.done = threading.Event()
        """Set when the job has ended."""

    def take(self, *, wait: bool, waits: Callable[[str], None]) -> None:
        """Take the slots, or return without them if nobody answers."""
        missed, said = 0, ""
        while not self._taken() and wait and missed < MISSED:
            missed = 0 if (taken := self._in_use()) else missed + 1
            if taken and taken != said:
                waits(said := taken)
            time.sleep(ASK_EVERY)

    def renew(self) -> None:
        """Renew the lease, or take the slots again if it was lost, until `done`."""
        while not self.done.wait(RENEW_EVERY):
            with suppress(httpx.HTTPError, StageFailedError):
                if self.lease is None:
                    self._taken()
                elif self._posted(f"leases/{self.lease}/renew", {"lease_duration": LEASE}).status_code == 410:
                    self._forget()

    def release(self) -> None:
        """Give the slots back."""
        if self.lease:
            with suppress(httpx.HTTPError):  # else the lease ends by itself
                self._posted("decrement-with-lease", {"lease_id": self.lease})
                self._forget()

    def _taken(self) -> bool:
        """Try once. Raises StageFailedError if there will never be enough slots."""
        try:
            self._release_of_the_dead()
            answer = self._posted(
                "increment-with-lease", {"names": [self.limit], "slots": self.slots, "lease_duration": LEASE}
            )
        except httpx.HTTPError:
            return False
        if answer.status_code == 422:
            raise StageFailedError(
                f"The limit {self.limit} of Prefect has fewer slots than the {self.slots} that this job needs. Another "
                "run, with other settings of this place, may have lowered it. Start it again to set it."
            )
        if answer.status_code != 200:
            return False
        self.lease = str(answer.json()["lease_id"])
        self.folder.mkdir(parents=True, exist_ok=True)
        us = LeaseRecord(host=socket.gethostname(), pid=os.getpid(), start=start_of(os.getpid()) or "")
        self._record(self.lease).write_text(us.model_dump_json())
        return True

    def _in_use(self) -> str:
        """What is taken, as `8 of 8`; empty if nobody answers."""
        with suppress(httpx.HTTPError, KeyError, ValueError):
            of = self.client.get(f"{_LIMITS}/{self.limit}").json()
            return f"{of['active_slots']} of {of['limit']}"
        return ""

    def _release_of_the_dead(self) -> None:
        for record in self.folder.glob("*.json"):
            with suppress(OSError, ValueError):  # another run removes it, too
                holder = LeaseRecord(**json.loads(record.read_text()))
                if holder.host == socket.gethostname() and not lives(holder.pid, holder.start):
                    record.unlink()
                    self._posted("decrement-with-lease", {"lease_id": record.stem})

    def _posted(self, path: str, body: object) -> httpx.Response:
        return self.client.post(f"{_LIMITS}/{path}", json=body)

    def _record(self, lease: str) -> Path:
        return self.folder / f"{lease}.json"

    def _forget(self) -> None:
        if self.lease:
            self._record(self.lease).unlink(missing_ok=True)
        self.lease = None
