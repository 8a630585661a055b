"""What people do to a row: expire, fail, cancel, retry now, reschedule. One conditional statement each, under the row's
lock, which is never waited for."""

import datetime as dt
from typing import Any

from sqlalchemy import ColumnElement, Table, inspect, or_, select, update
from sqlalchemy.orm import Session, object_session

from async_task.dialects import compared
from async_task.errors import InvalidState, NoTransaction
from async_task.status import Status
from async_task.tables import JobEvent
from async_task.transitions import Values, ending, moving, reviving
from async_task.writing import sync_session

PENDING = frozenset({Status.PENDING})
GIVEN_UP = frozenset({Status.FAILED, Status.EXPIRED, Status.CANCELED})


def end(attempt: Any, session: Session | None, status: Status, verb: str, reason: str | None) -> None:
    """Bring a pending attempt to rest in `status`. Raises InvalidState."""
    table = table_of(attempt)
    _change(
        attempt,
        session,
        verb,
        PENDING,
        ending(table, status, last_error=reason or table.c.last_error, crashed=True),
        reason,
    )


def retry_now(attempt: Any, session: Session | None, reason: str | None) -> None:
    """Due now: a pending attempt as it is; a failed, expired or canceled one with fresh counters. Raises InvalidState."""
    table = table_of(attempt)
    own = _session_of(attempt, session)
    own.flush()
    status = own.scalar(select(table.c.status).where(table.c.id == attempt.id))
    if status in GIVEN_UP:
        _change(attempt, own, "retry_now", GIVEN_UP, reviving(table), reason)
    else:
        _change(attempt, own, "retry_now", PENDING, moving(table, None), reason)


def reschedule(attempt: Any, session: Session | None, at: dt.datetime, reason: str | None) -> None:
    """Due at `at`. Raises InvalidState."""
    _change(attempt, session, "reschedule", PENDING, moving(table_of(attempt), at), reason)


def table_of(attempt: Any) -> Table:
    """The table that holds the state of this attempt or model: that of the root of its inheritance."""
    mapper = inspect(attempt if isinstance(attempt, type) else type(attempt))
    table = mapper.base_mapper.local_table
    assert isinstance(table, Table)
    return table


def not_performing(table: Table) -> ColumnElement[bool]:
    """Unclaimed, or with a lease that is past; a row that is locked besides is skipped by the lock itself."""
    return or_(table.c.claim_id.is_(None), table.c.lease_until <= compared())


def _change(
    attempt: Any, session: Session | None, verb: str, legal: frozenset[Status], values: Values, reason: str | None
) -> None:
    own = _session_of(attempt, session)
    own.flush()
    table = table_of(attempt)
    allowed = (table.c.id == attempt.id, table.c.status.in_(sorted(legal)), not_performing(table))
    # SKIP LOCKED answers "somebody has it" with no row, where NOWAIT would abort the caller's transaction.
    lock = select(table.c.id).where(*allowed).with_for_update(skip_locked=True, key_share=True)
    if own.execute(lock).first() is None or not _hit(own, update(table).where(*allowed).values(values)):
        raise InvalidState(_why_not(own, table, attempt.id, verb, legal))
    own.add(JobEvent(job_type=table.name, job_id=str(attempt.id), kind=verb, message=reason))
    own.flush()
    own.refresh(attempt)


def _hit(session: Session, statement: Any) -> bool:
    result: Any = session.execute(statement.execution_options(synchronize_session=False))
    return bool(result.rowcount == 1)


def _session_of(attempt: Any, session: Session | None) -> Session:
    attached = object_session(attempt)
    if session is None:
        if attached is None:
            raise NoTransaction(
                f"attempt {attempt.id} is attached to no session: give the one in which it shall change"
            )
        return attached
    own = sync_session(session)
    if attached is None:
        own.add(attempt)
    elif attached is not own:
        raise InvalidState(f"attempt {attempt.id} is attached to another session than the one given")
    return own


def _why_not(session: Session, table: Table, attempt_id: Any, verb: str, legal: frozenset[Status]) -> str:
    row = session.execute(
        select(table.c.status, table.c.claim_id, table.c.claimed_by, table.c.attempted_at).where(
            table.c.id == attempt_id
        )
    ).first()
    if row is None:
        return f"{verb}: there is no attempt {attempt_id}"
    if row.status not in legal:
        return f"{verb}: attempt {attempt_id} is {row.status}, and must be {' or '.join(sorted(legal))}"
    if row.claim_id is not None:
        return f"{verb}: attempt {attempt_id} is being performed by {row.claimed_by} since {row.attempted_at:%Y-%m-%d %H:%M:%S} UTC"
    return f"{verb}: attempt {attempt_id} is being changed by another transaction at this moment; try again"
