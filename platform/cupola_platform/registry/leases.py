"""Leases: one command at a time runs a stage, from whichever machine, and the job that it started is remembered."""

import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from cupola_platform.liveness import lives, start_of
from cupola_platform.registry.database import Transaction, patient
from cupola_platform.registry.tables import LeaseTable, RunTable

SECONDS = 90.0
"""How long a lease lasts unless it is renewed: a machine that loses power holds a stage no longer."""


@dataclass(frozen=True, kw_only=True)
class LeaseRow:
    """Who runs a stage, and where its job is."""

    fingerprint: str
    holder: str
    """Unique per holder."""
    host: str
    pid: int
    process_start: str
    expires: datetime
    """UTC, by the database's clock."""
    cluster: str | None
    """Cluster of the stage's newest job; None for this machine."""
    job: str | None
    """Its name or number there."""

    @property
    def is_held(self) -> bool:
        """Whether a command holds it, as far as this machine can tell."""
        return self.holder != "" and not _is_dead(self) and self.expires > datetime.now(UTC)


class Leases:
    """The leases of a registry."""

    def __init__(self, read: Transaction, write: Transaction, patience: float) -> None:
        self._read, self._write, self.patience = read, write, patience

    @patient
    def take(self, fingerprint: str, holder: str) -> LeaseRow:
        """Take a stage's lease, unless another living holder has it. What is known of its job stays.

        Returns:
            the lease as it is now; its `holder` is another one if it could not be taken.
        """
        with self._write() as session:
            now = now_of(session)
            row = session.get(LeaseTable, fingerprint)
            if row is None:
                row = LeaseTable(fingerprint=fingerprint, holder="", cluster=None, job=None)
                session.add(row)
            elif row.holder not in ("", holder) and row.expires > now and not _is_dead(row):
                return _row(row)
            row.holder, row.host, row.pid = holder, socket.gethostname(), os.getpid()
            row.process_start, row.expires = start_of(os.getpid()) or "", now + timedelta(seconds=SECONDS)
            return _row(row)

    @patient
    def renew(self, fingerprint: str, holder: str) -> bool:
        """Extend a lease. False if another holder has it by now."""
        with self._write() as session:
            row = session.get(LeaseTable, fingerprint)
            if row is None or row.holder != holder:
                return False
            row.expires = now_of(session) + timedelta(seconds=SECONDS)
            return True

    @patient
    def note_job(self, fingerprint: str, holder: str, cluster: str | None, job: str | None) -> None:
        """Remember the job that runs the stage."""
        with self._write() as session:
            row = session.get(LeaseTable, fingerprint)
            if row is not None and row.holder == holder:
                row.cluster, row.job = cluster, job

    @patient
    def release(self, fingerprint: str, holder: str, *, job_goes_on: bool) -> None:
        """Give a lease back. If its job goes on, the row stays, without a holder."""
        with self._write() as session:
            row = session.get(LeaseTable, fingerprint)
            if row is None or row.holder != holder:
                return
            if job_goes_on:
                row.holder = ""
            else:
                session.delete(row)

    @patient
    def of(self, fingerprint: str) -> LeaseRow | None:
        """The lease of a stage."""
        with self._read() as session:
            row = session.get(LeaseTable, fingerprint)
            return None if row is None else _row(row)

    @patient
    def forget_job(self, fingerprint: str) -> None:
        """Forget a job that has ended, if nobody holds the lease."""
        with self._write() as session:
            row = session.get(LeaseTable, fingerprint)
            if row is not None and row.holder == "":
                session.delete(row)

    @patient
    def all(self) -> list[LeaseRow]:
        """Every lease that has a living holder or a job that may go on."""
        with self._read() as session:
            now = now_of(session)
            rows = session.scalars(select(LeaseTable).order_by(LeaseTable.fingerprint))
            return [_row(row) for row in rows if row.job or (row.expires > now and not _is_dead(row))]


def jobs_left_by(session: Session, runs: Iterable[RunTable]) -> dict[str, str]:
    """By id of a stage's or a recipe's run: the job on a cluster that it left to itself, in words."""
    left: dict[str, str] = {}
    for run in runs:
        lease = session.get(LeaseTable, Path(run.work_folder).name) if run.work_folder else None
        if lease is not None and lease.cluster and lease.job and (lease.holder == "" or _is_dead(lease)):
            left[run.id] = f"job {lease.job} of cluster {lease.cluster}"
            if run.parent_id:
                left[run.parent_id] = left[run.id]
    return left


def _is_dead(row: LeaseTable | LeaseRow) -> bool:
    """Whether the holder was a process of this machine and has ended."""
    return row.host == socket.gethostname() and not lives(row.pid, row.process_start)


def now_of(session: Session) -> datetime:
    """The time by the clock that all holders share: the server's, or this machine's for a file."""
    if session.get_bind().dialect.name == "sqlite":
        return datetime.now(UTC)
    now: datetime = session.scalars(select(func.now())).one()
    return now.astimezone(UTC)


def _row(row: LeaseTable) -> LeaseRow:
    return LeaseRow(
        fingerprint=row.fingerprint, holder=row.holder, host=row.host, pid=row.pid, process_start=row.process_start,
        expires=row.expires, cluster=row.cluster, job=row.job,
    )  # fmt: skip
