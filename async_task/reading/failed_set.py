"""The attempts that failed for good by errors of one fingerprint, frozen at an instant, and whether such errors have
returned since."""

import datetime as dt
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table, func, select
from sqlalchemy.orm import Session

from async_task.errors import ConfigurationError
from async_task.queue.fingerprints import DIGITS
from async_task.reading.events import ERRORS
from async_task.reading.pages import clock_of
from async_task.schema.states import Status
from async_task.schema.tables import companion_tables

MOST_EVENTS = 100_000
"""How many errors of a fingerprint are read at most, the oldest first."""
PAGE = 500
_FINGERPRINT = re.compile(rf"[0-9a-f]{{{DIGITS}}}")


@dataclass(frozen=True, slots=True)
class FailedSet:
    """The attempts that had failed for good at `cutoff`, by the database's clock, and whose last error has this
    fingerprint: `ids`, in the order of their creation. `last_event`: the id of the newest event then; errors behind it
    are new. `is_complete`: whether all errors of the fingerprint were read; else the oldest 100,000."""

    fingerprint: str
    cutoff: dt.datetime
    last_event: int
    ids: tuple[uuid.UUID, ...]
    is_complete: bool


def check_fingerprint(given: object) -> str:
    """Raises ConfigurationError for what is no fingerprint."""
    if not isinstance(given, str) or not _FINGERPRINT.fullmatch(given):
        raise ConfigurationError(f"a fingerprint has {DIGITS} hexadecimal digits, as failures() has it, not {given!r}")
    return given


def failed_set(session: Session, table: Table, fingerprint: str) -> FailedSet:
    """Four statements for each 500 errors of the fingerprint."""
    c, now = companion_tables(table).events.c, clock_of(session)
    last: int = session.scalar(select(func.max(c.id))) or 0
    found: set[uuid.UUID] = set()
    after, read = 0, 0
    while read < MOST_EVENTS:
        mine = (c.job_type == table.name, c.fingerprint == fingerprint, c.id > after, c.id <= last)
        rows: Any = session.execute(select(c.id, c.job_id).where(*mine).order_by(c.id).limit(PAGE)).all()
        found.update(_failed_by(session, table, fingerprint, last, sorted({row.job_id for row in rows})))
        read += len(rows)
        if len(rows) < PAGE:
            return FailedSet(fingerprint, now, last, tuple(sorted(found)), True)
        after = rows[-1].id
    return FailedSet(fingerprint, now, last, tuple(sorted(found)), False)


def has_returned(session: Session, table: Table, failed: FailedSet) -> bool:
    """Whether there is an error of this fingerprint, of whatever attempt, since the set was frozen."""
    c = companion_tables(table).events.c
    newer = (c.job_type == table.name, c.fingerprint == failed.fingerprint, c.id > failed.last_event)
    return session.scalar(select(c.id).where(*newer).order_by(c.id).limit(1)) is not None


def _failed_by(
    session: Session, table: Table, fingerprint: str, last: int, job_ids: Sequence[str]
) -> Iterator[uuid.UUID]:
    """Those of these attempts that have failed, and whose last error has the fingerprint."""
    ids = [uuid.UUID(one) for one in job_ids]
    asked: Any = select(table.c.id).where(table.c.id.in_(ids), table.c.status == Status.FAILED)
    failed = [str(one) for one in session.scalars(asked)]
    if failed:
        c = companion_tables(table).events.c
        errors = (c.job_type == table.name, c.job_id.in_(failed), c.id <= last, c.kind.in_(ERRORS))
        newest = session.scalars(select(func.max(c.id)).where(*errors).group_by(c.job_id)).all()
        alike = session.scalars(select(c.job_id).where(c.id.in_(newest), c.fingerprint == fingerprint))
        yield from map(uuid.UUID, alike)
