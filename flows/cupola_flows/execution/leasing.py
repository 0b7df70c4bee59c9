"""The right to run a stage: one command at a time has it, on this machine and on all that share the registry."""

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from cupola_platform.errors import RegistryError, StageFailedError
from cupola_platform.launch.handle import Handle
from cupola_platform.registry import Registry
from cupola_platform.registry.leases import SECONDS, LeaseRow

RENEW_EVERY = SECONDS / 6


class BusyError(StageFailedError):
    """Another living command runs the stage."""


@dataclass
class Lease:
    """The right of this process to run one stage."""

    registry: Registry
    fingerprint: str
    name: str
    """The stage's, for messages."""
    job: Handle | None = None
    """The job that runs the stage on a cluster, as far as this process knows: it goes on whatever ends this process."""
    holder: str = field(default_factory=lambda: uuid.uuid4().hex)
    _lost: threading.Event = field(default_factory=threading.Event)
    _done: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raises StageFailedError if another command has taken the stage over, after this one could not be heard."""
        if self._lost.is_set():
            raise StageFailedError(
                f"stage {self.name}: another command took it over while this one could not reach the registry. "
                "Nothing was published here. cupola runs shows it."
            )

    def note(self, handle: Handle) -> None:
        """Remember the job that runs the stage."""
        self.job = handle
        self.registry.leases.note_job(self.fingerprint, self.holder, handle.cluster, handle.id)

    def renew(self) -> None:
        """Renew until the stage ends."""
        while not self._done.wait(RENEW_EVERY):
            with suppress(RegistryError):  # it is tried again; what counts is whether another has the lease by then
                if not self.registry.leases.renew(self.fingerprint, self.holder):
                    self._lost.set()
                    return

    def end(self) -> None:
        self._done.set()


@contextmanager
def leased(registry: Registry, fingerprint: str, name: str) -> Iterator[Lease]:
    """Hold a stage's lease while the block runs. Its job may be one that an earlier command left on a cluster.

    Raises:
        BusyError: another living command runs the stage; says where.
    """
    lease = Lease(registry, fingerprint, name)
    row = registry.leases.take(fingerprint, lease.holder)
    if row.holder != lease.holder:
        raise BusyError(f"stage {name} is being run by {_who(row)}. Wait for it, or stop it first.")
    threading.Thread(target=lease.renew, name=f"lease of {name}", daemon=True).start()
    lease.job = Handle(cluster=row.cluster, id=row.job) if row.cluster and row.job else None
    try:
        yield lease
    finally:
        lease.end()
        with suppress(RegistryError):  # else it expires
            registry.leases.release(fingerprint, lease.holder, job_goes_on=lease.job is not None)


def _who(row: LeaseRow) -> str:
    job = f", as job {row.job} of cluster {row.cluster}" if row.job and row.cluster else ""
    return f"process {row.pid} on {row.host}{job}"
