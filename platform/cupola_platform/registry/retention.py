"""Which artifacts are still needed, and the removal of the others.

An artifact is removed in two steps. `collect` moves its row to the table `removal`, in one transaction with the
decision: from then on nobody finds it. Then its files go, and the row of the removal last, so that a killed removal is
continued by the next one. Whoever wants an artifact says so by `use` (finding it) or `claim` (making it again). These
are transactions too, and writers take turns: either the decision sees them, or they see the decision.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, or_, select
from sqlalchemy.orm import Session

from cupola_platform.registry.database import Transaction, patient
from cupola_platform.registry.leases import now_of
from cupola_platform.registry.tables import (
    AliasTable,
    AnnotationTable,
    ArtifactTable,
    EdgeTable,
    RemovalTable,
    RunTable,
)

BEFORE_A_RUN = timedelta(days=1)
"""What was used this long before the start of a run in progress counts as used by it: a run looks up its inputs before
it is recorded, and machines' clocks differ."""
JUDGEMENTS = ("evaluation", "promotion")
"""Kinds that are kept with the artifacts that they are about."""
ACTIVE = ("running", "detached")


@dataclass(frozen=True, kw_only=True)
class Removal:
    """An artifact that is removed, or would be."""

    digest: str
    kind: str
    stage: str
    size: int
    """Bytes of its files."""


class Retention:
    """What a registry knows of the use of artifacts."""

    def __init__(self, read: Transaction, write: Transaction, patience: float) -> None:
        self._read, self._write, self.patience = read, write, patience

    @patient
    def use(self, digest: str) -> bool:
        """Say that an artifact is used now. False if it is not registered, or no longer."""
        with self._write() as session:
            row = session.get(ArtifactTable, digest)
            if row is not None:
                row.used = now_of(session)
            return row is not None

    @patient
    def claim(self, digest: str) -> None:
        """Say that content is about to be stored under its digest: if it is being removed, what is left of it stays."""
        with self._write() as session:
            session.execute(delete(RemovalTable).where(RemovalTable.digest == digest))
            if (row := session.get(ArtifactTable, digest)) is not None:
                row.used = now_of(session)

    @patient
    def now(self) -> datetime:
        """The time by the clock that all machines share."""
        with self._read() as session:
            return now_of(session)

    @patient
    def unneeded(self, before: datetime) -> list[Removal]:
        """The artifacts that `collect` would take."""
        with self._read() as session:
            return _unneeded(session, before)

    @patient
    def collect(self, before: datetime) -> list[Removal]:
        """Take every artifact that nothing needs out of the registry. Their files are still there, see `removing`.

        Kept are: what was used or made since `before`, or since a day before the start of the oldest run in progress;
        results of runs that ended since then; artifacts with an alias or with people's annotations; all ancestors of
        those; and the evaluations and promotions of artifacts with an alias and of their ancestors.
        """
        with self._write() as session:
            gone = _unneeded(session, before)
            session.add_all(
                RemovalTable(digest=each.digest, kind=each.kind, stage=each.stage, size=each.size) for each in gone
            )
            for each in gone:
                session.execute(delete(ArtifactTable).where(ArtifactTable.digest == each.digest))
            return gone

    @patient
    def pending(self) -> list[Removal]:
        """Artifacts that were collected and whose files may still be there."""
        with self._read() as session:
            return [
                Removal(digest=row.digest, kind=row.kind, stage=row.stage, size=row.size)
                for row in session.scalars(select(RemovalTable).order_by(RemovalTable.digest))
            ]

    @contextmanager
    def removing(self, digest: str) -> Iterator[bool]:
        """Finish a removal: the block takes the artifact out of the store while nobody can claim it.

        Yields:
            whether the removal still stands.
        """
        with self._write() as session:
            row = session.get(RemovalTable, digest)
            yield row is not None
            if row is not None:
                session.delete(row)


def _unneeded(session: Session, before: datetime) -> list[Removal]:
    active = session.scalars(select(RunTable.started).where(RunTable.status.in_(ACTIVE)))
    since = min([before, *(started - BEFORE_A_RUN for started in active)])
    rows = session.execute(
        select(ArtifactTable.digest, ArtifactTable.kind, ArtifactTable.stage, ArtifactTable.size,
               ArtifactTable.created, ArtifactTable.used)
    ).all()  # fmt: skip
    parents: dict[str, list[str]] = {}
    for child, parent in session.execute(select(EdgeTable.child, EdgeTable.parent)):
        parents.setdefault(child, []).append(parent)
    recent = {row.digest for row in rows if max(row.created, row.used or row.created) >= since}
    ended = select(RunTable.artifact).where(or_(RunTable.status.in_(ACTIVE), RunTable.ended >= since))
    named = _with_ancestors(session.scalars(select(AliasTable.digest)), parents)
    annotated = session.scalars(select(AnnotationTable.artifact).distinct())
    results = {digest for digest in session.scalars(ended) if digest}
    kept = named | _with_ancestors({*recent, *annotated, *results}, parents)
    kept |= {row.digest for row in rows if row.kind in JUDGEMENTS and not named.isdisjoint(parents.get(row.digest, ()))}
    return [
        Removal(digest=row.digest, kind=row.kind, stage=row.stage, size=row.size)
        for row in rows
        if row.digest not in kept
    ]


def _with_ancestors(digests: Iterable[str], parents: Mapping[str, Iterable[str]]) -> set[str]:
    lineage: set[str] = set()
    left = list(digests)
    while left:
        digest = left.pop()
        if digest not in lineage:
            lineage.add(digest)
            left += parents.get(digest, ())
    return lineage
