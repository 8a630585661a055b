"""The verbs by which people change a row: expire, fail, cancel, retry now, reschedule. Each is one conditional UPDATE
under the row's lock, for which it never waits."""

import datetime as dt
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, inspect, or_, select, update
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session, object_session

from async_task.attempts import unwritten
from async_task.attempts.messages import MessageKind, row_target_named, send_message
from async_task.database.changed_objects import refresh_changed
from async_task.database.clock import statement_now
from async_task.database.dialects import locks_rows, reads_snapshots
from async_task.database.sessions import attached_session, routed_as_writes, sync_session, write_arguments
from async_task.error_text import storable
from async_task.errors import InvalidArguments, InvalidState, NoTransaction
from async_task.queue.ordering import release_in
from async_task.schema.audit import record_verb
from async_task.schema.states import Status, Values, ending, is_emptied, reopening, rescheduling, restarting
from async_task.schema.tables import table_of
from async_task.wakeup.commit_hooks import wake_after_commit

PENDING = frozenset({Status.PENDING})
GIVEN_UP = frozenset({Status.FAILED, Status.EXPIRED, Status.CANCELED})
_DECIDING = "async_task.deciding"
LEGAL = {"retry_now": PENDING | GIVEN_UP}
"""The states in which a verb is legal, where that is not PENDING alone."""
TOLD = ("status", "due_at")
"""What the event of a verb says before and after, also if it is the same."""
CHANGED = (*TOLD, "expires_at", "num_errors", "num_crashes", "num_losses", "claimed_by")
"""What it says if it differs."""
ENDED = ("completed_at", "last_error", "updated_at", "released", "arrived", "order_slot", "claim_id", "lease_until")
"""The further columns that a verb changes."""


@contextmanager
def deciding(session: Session, attempt_id: uuid.UUID) -> Iterator[None]:
    """Inside of this, `session` decides about the outcome of an attempt that is written and not committed: the attempt
    can be ended also if its last try has ended it."""
    session.info[_DECIDING] = attempt_id
    try:
        yield
    finally:
        del session.info[_DECIDING]


def end(attempt: Any, session: Session | None, status: Status, verb: str, reason: str | None) -> None:
    """End a pending attempt in `status`. Raises InvalidState, InvalidArguments."""
    table = table_of(attempt)
    _check_reason(reason)
    if unwritten.is_unwritten(attempt):
        _change_unwritten(attempt, verb, status=status, completed_at=dt.datetime.now(dt.UTC), last_error=reason)
        return
    said: Any = storable(reason) if reason else table.c.last_error
    values = ending(table, status, last_error=said, unreported=True)
    own = _session_of(attempt, session)
    legal = PENDING | GIVEN_UP if own.info.get(_DECIDING) == attempt.id else PENDING
    _change(attempt, own, verb, legal, values, reason)


def retry_now(attempt: Any, session: Session | None, reason: str | None) -> None:
    """Due now: a pending attempt as it is, a failed, expired or canceled one with fresh counters. Else InvalidState."""
    table = table_of(attempt)
    _check_reason(reason)
    if unwritten.is_unwritten(attempt):
        now = dt.datetime.now(dt.UTC)
        _change_unwritten(attempt, "retry_now", status=Status.PENDING, completed_at=None, due_at=now)
        return
    own = _session_of(attempt, session)
    with routed_as_writes(own, inspect(type(attempt))) as connection:
        row = _standing(connection, table, attempt.id)
    if row is not None and row.status in GIVEN_UP:
        _change(attempt, own, "retry_now", GIVEN_UP, reopening(table), reason)
    else:
        _change(attempt, own, "retry_now", PENDING, rescheduling(table, None), reason)
    wake_after_commit(own, inspect(type(attempt)), {attempt.queue: 1}, (attempt.id,))


def reschedule(attempt: Any, session: Session | None, at: dt.datetime, reason: str | None) -> None:
    """Due at `at`. Raises InvalidState, InvalidArguments."""
    _check_reason(reason)
    if unwritten.is_unwritten(attempt):
        _change_unwritten(attempt, "reschedule", due_at=at)
        return
    own, values = _session_of(attempt, session), rescheduling(table_of(attempt), at)
    _change(attempt, own, "reschedule", PENDING, values, reason)
    # A sleeping worker knows when the next attempt is due, and may be about to sleep for longer than that.
    wake_after_commit(own, inspect(type(attempt)), {attempt.queue: 1}, ())


def restart(
    attempt: Any, session: Session, *, at: dt.datetime | None, expires_at: dt.datetime | None, reason: str
) -> None:
    """Pending with fresh counters, unless it has succeeded: due `at` (None: now), until `expires_at`. Else
    InvalidState."""
    own, values = _session_of(attempt, session), restarting(table_of(attempt), at, expires_at)
    _change(attempt, own, "retry_now", PENDING | GIVEN_UP, values, reason)
    if at is None:
        wake_after_commit(own, inspect(type(attempt)), {attempt.queue: 1}, (attempt.id,))


def status_now(attempt: Any, session: Session) -> Status | None:
    """Its status as it is committed, or changed in this transaction; None if it is gone."""
    with routed_as_writes(session, inspect(type(attempt))) as connection:
        row = _standing(connection, table_of(attempt), attempt.id)
    return None if row is None else row.status


def not_performing(table: Table) -> ColumnElement[bool]:
    """Unclaimed, or with a lease that is past. A row that is locked is skipped by the lock itself."""
    return or_(table.c.claim_id.is_(None), table.c.lease_until <= statement_now())


def _change(
    attempt: Any, own: Session, verb: str, legal: frozenset[Status], values: Values, reason: str | None
) -> None:
    with routed_as_writes(own, inspect(type(attempt))) as connection:
        _change_on(connection, attempt, own, verb, legal, values, reason)


def _change_on(
    connection: Connection, attempt: Any, own: Session, verb: str, legal: frozenset[Status], values: Values,
    reason: str | None,
) -> None:  # fmt: skip
    table = table_of(attempt)
    allowed = (table.c.id == attempt.id, table.c.status.in_(sorted(legal)), not_performing(table), ~is_emptied(table))
    # SKIP LOCKED returns no row for a locked one, where NOWAIT would abort the caller's transaction.
    before = select(*(table.c[name] for name in CHANGED)).where(*allowed)
    lock = before.with_for_update(skip_locked=True, key_share=True)
    # By id alone where the row is locked now: with the status, MySQL would wait for the locks of other rows.
    still = allowed[:1] if locks_rows(connection.dialect) else allowed
    change = update(table).ordered_values(*values.items()).where(*still)
    bind = write_arguments(inspect(type(attempt)))
    row = own.execute(lock, bind_arguments=bind).first()
    if row is None or not _hit(own, change, bind):
        raise InvalidState(_why_not(connection, table, attempt.id, verb))
    refresh_changed(own, attempt, _changed_by(attempt))
    _record(connection, attempt, verb, reason, dict(zip(CHANGED, row, strict=True)))
    if verb == "cancel" and row_target_named(attempt.target) is None:
        send_message(own, attempt, MessageKind.CANCELED)
    if attempt.order_key is not None:  # the next one of this key may be free now
        if released := release_in(connection, table, [attempt.order_key]):
            wake_after_commit(own, inspect(type(attempt)), Counter(released), ())
        refresh_changed(own, attempt, _changed_by(attempt))


def _changed_by(attempt: Any) -> list[str]:
    """The attributes of an attempt that a verb changes: those of our columns that are not written once."""
    table, mapper = table_of(attempt), inspect(type(attempt))
    return [mapper.get_property_by_column(table.c[name]).key for name in (*CHANGED, *ENDED)]


def _change_unwritten(attempt: Any, verb: str, **values: Any) -> None:
    """Change the object alone, of an attempt that is not written in the mode "off". Raises InvalidState."""
    status = attempt.status or Status.PENDING
    problem = refusal(verb, attempt.id, status, claimed_by=None, attempted_at=None, is_pruned=False)
    if problem is not None:
        raise InvalidState(problem)
    for name, value in values.items():
        setattr(attempt, name, value)


def _record(
    connection: Connection, attempt: Any, verb: str, reason: str | None, before: dict[str, Any]
) -> None:  # fmt: skip
    table, mapper = table_of(attempt), inspect(type(attempt))
    after = {name: getattr(attempt, mapper.get_property_by_column(table.c[name]).key) for name in CHANGED}
    record_verb(connection, table, (table.name, str(attempt.id)), verb, reason, before, after, always=TOLD)


def _check_reason(reason: object) -> None:
    if reason is not None and not isinstance(reason, str):
        raise InvalidArguments(f"reason: takes a text, not {type(reason).__name__}")


def _hit(session: Session, statement: Any, bind: dict[str, Any]) -> bool:
    result: Any = session.execute(statement.execution_options(synchronize_session=False), bind_arguments=bind)
    return bool(result.rowcount == 1)


def _session_of(attempt: Any, session: Session | None) -> Session:
    """The session in which the attempt is changed, with the attempt attached and flushed."""
    own = attached_session(attempt) if session is None else sync_session(session)
    if own is None:
        raise NoTransaction(f"attempt {attempt.id} is attached to no session: give the one in which to change it")
    attached = object_session(attempt)
    if attached is None:
        _attach(attempt, own)
    elif attached is not own:
        raise InvalidState(f"attempt {attempt.id} is attached to another session than the one given")
    own.flush()
    return own


def _attach(attempt: Any, own: Session) -> None:
    try:
        own.add(attempt)
    except InvalidRequestError:
        raise InvalidState(
            f"attempt {attempt.id}: this session has another instance of it: change that one, from session.get(...)"
        ) from None


def _standing(connection: Connection, table: Table, attempt_id: Any) -> Any:
    """The row as it is now; None when there is no such row."""
    columns = (table.c.status, table.c.claim_id, table.c.claimed_by, table.c.attempted_at)
    found = select(*columns, is_emptied(table).label("is_pruned")).where(table.c.id == attempt_id)
    row = None
    if reads_snapshots(connection.dialect):
        row = connection.execute(found.with_for_update(skip_locked=True)).first()
    return row or connection.execute(found).first()


def refusal(
    verb: str, attempt_id: Any, status: Status, claimed_by: str | None, attempted_at: dt.datetime | None,
    is_pruned: bool,
) -> str | None:  # fmt: skip
    """Why `verb` is not legal for an attempt in `status` that is claimed by `claimed_by` (None: by no worker); None
    where it is legal."""
    legal = LEGAL.get(verb, PENDING)
    if status not in legal:
        return f"{verb}: attempt {attempt_id} is {status}, and must be {' or '.join(sorted(legal))}"
    if is_pruned:
        return f"{verb}: attempt {attempt_id} was pruned: its arguments are gone, and only its token is kept"
    if claimed_by is not None:
        since = "" if attempted_at is None else f" since {attempted_at:%Y-%m-%d %H:%M:%S} UTC"
        return f"{verb}: attempt {attempt_id} is being performed by {claimed_by}{since}"
    return None


def _why_not(connection: Connection, table: Table, attempt_id: Any, verb: str) -> str:
    row = _standing(connection, table, attempt_id)
    if row is None:
        return f"{verb}: there is no attempt {attempt_id}"
    is_changing = f"{verb}: attempt {attempt_id} is being changed by another transaction at this moment; try again"
    return refusal(verb, attempt_id, row.status, row.claimed_by, row.attempted_at, row.is_pruned) or is_changing
