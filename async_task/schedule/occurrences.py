"""The SQL of the clock: it reads what is decided, and writes what it decides together with the attempts.

An occurrence is a row of its own: entry and fire time are its key, and it is written in the transaction of its attempt.
So each is enqueued once, whatever clocks do. `write` begins with a lock on the entry's row that only one clock gets.
"""

import datetime as dt
import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Table, delete, insert, inspect, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from async_task.attempts.attempt import BaseAttempt
from async_task.database.clock import clock_now, statement_now
from async_task.database.server_sessions import limit_session
from async_task.database.sessions import write_arguments
from async_task.error_text import storable
from async_task.queue import workers
from async_task.queue.pauses import NOTHING
from async_task.schedule.decisions import Decided, EntryState
from async_task.schedule.entry import Entry
from async_task.schema.audit import record_verb
from async_task.schema.jobs import fitting
from async_task.schema.states import Status
from async_task.schema.tables import companion_tables, table_of

KEPT = dt.timedelta(days=30)
"""How long rows of occurrences are kept, counted from their fire time."""
LOCKED_FOR = 15.0
"""Seconds for which a clock that is frozen can keep an entry from the others."""
FORGOTTEN = 1_000
"""How many of them one transaction deletes at most."""


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """The row of an entry, and the state of its last attempt."""

    rule: str
    state: EntryState
    paused_at: dt.datetime | None
    paused_by: str | None
    pause_reason: str | None


def database_now(connection: Connection) -> dt.datetime:
    now: dt.datetime = connection.execute(select(statement_now())).scalar_one()
    return now


def read(connection: Connection, table: Table) -> dict[str, StoredEntry]:
    """The entries that a clock has seen, by key."""
    schedules = companion_tables(table).schedules
    c = schedules.c
    chosen: Any = select(
        c.schedule_key, c.rule, c.decided_until, c.paused_at, c.paused_by, c.pause_reason, table.c.status
    )
    joined = schedules.outerjoin(table, table.c.id == c.last_attempt_id)
    rows = connection.execute(chosen.select_from(joined).where(c.job_type == table.name)).all()
    return {
        row.schedule_key: StoredEntry(
            row.rule, EntryState(row.decided_until, row.paused_at is not None, row.status == Status.PENDING),
            row.paused_at, row.paused_by, row.pause_reason,
        )
        for row in rows
    }  # fmt: skip


def beat_and_read(table: Table, clock: str, about: str, engine: Engine) -> tuple[dt.datetime, dict[str, StoredEntry]]:
    """A tick: write the heartbeat of this clock, and read the time and the entries. `about`: what it says of itself."""
    with engine.begin() as connection:
        workers.register(connection, table, clock, workers.CLOCK, about=about)
        return database_now(connection), read(connection, table)


def adopt(engine: Engine, table: Table, entry: Entry) -> None:
    """Remember an entry that is new or has another rule than before: its times count from now on."""
    schedules = companion_tables(table).schedules
    values = {"rule": str(entry.rule), "decided_until": clock_now()}
    change = update(schedules).where(*_is(schedules, table, entry.key)).values(values)
    try:
        with engine.begin() as connection:
            if not connection.execute(change).rowcount:
                key = {"job_type": table.name, "schedule_key": entry.key}
                connection.execute(insert(schedules).values(key | values))
    except IntegrityError:  # another clock has written the row at the same time
        return


def write(
    session: Session, model: type[BaseAttempt], entry: Entry, state: EntryState, decided: Sequence[Decided],
    now: dt.datetime,
) -> list[Decided] | None:  # fmt: skip
    """Write what was decided, with its attempts, in the transaction of this session. Returns what was written; None
    where another clock, or a person, was first."""
    table, connection = table_of(model), _connection(session, model)
    limit_session(connection, LOCKED_FOR)
    if not _win(connection, table, entry, state, until=decided[-1].fire_at):
        return None
    new = _unknown(connection, table, entry, decided)
    ids = {one.fire_at: _enqueue(session, model, entry, now) for one in new if one.status == "enqueued"}
    session.flush()
    _insert(connection, table, entry, [(one, ids.get(one.fire_at)) for one in new])
    if ids:
        schedules = companion_tables(table).schedules
        last = update(schedules).where(*_is(schedules, table, entry.key)).values(last_attempt_id=ids[max(ids)])
        connection.execute(last)
    _forget(connection, table, entry, now - KEPT)
    return new


def _win(connection: Connection, table: Table, entry: Entry, state: EntryState, *, until: dt.datetime) -> bool:
    """Whether the entry is as it was when this was decided, and nobody else writes it now. If so, its row is locked
    from here on, and decided `until`."""
    schedules = companion_tables(table).schedules
    paused_at = schedules.c.paused_at
    is_paused_as_read = paused_at.is_not(None) if state.is_paused else paused_at.is_(None)
    as_read = (schedules.c.decided_until == state.decided_until, is_paused_as_read)
    mine = _is(schedules, table, entry.key)
    # Nobody waits here: the other clock may be frozen, and this one has other entries.
    free = select(schedules.c.schedule_key).where(*mine, *as_read).with_for_update(skip_locked=True)
    if connection.scalar(free) is None:
        return False
    connection.execute(update(schedules).where(*mine).values(decided_until=until))
    return True


def _unknown(connection: Connection, table: Table, entry: Entry, decided: Sequence[Decided]) -> list[Decided]:
    """Those that have no row yet. Others have one only where somebody has put the memory of the entry back."""
    occurrences = companion_tables(table).occurrences
    fire_at = occurrences.c.fire_at
    among = (*_is(occurrences, table, entry.key), fire_at.between(decided[0].fire_at, decided[-1].fire_at))
    known = set(connection.scalars(select(fire_at).where(*among)))
    return [one for one in decided if one.fire_at not in known]


def _insert(
    connection: Connection, table: Table, entry: Entry, rows: Sequence[tuple[Decided, uuid.UUID | None]]
) -> None:
    key = {"job_type": table.name, "schedule_key": entry.key}
    values = [
        {**key, "fire_at": one.fire_at, "status": one.status, "reason": one.reason, "attempt_id": attempt_id}
        for one, attempt_id in rows
    ]
    if values:
        connection.execute(insert(companion_tables(table).occurrences), values)


def enqueue_now(session: Session, model: type[BaseAttempt], entry: Entry, reason: str) -> uuid.UUID:
    """An occurrence by hand: now, whatever the rule, `when=` and a pause say. Returns the id of its attempt."""
    table, connection = table_of(model), _connection(session, model)
    schedules, now = companion_tables(table).schedules, database_now(connection)
    made = _enqueue(session, model, entry, now, is_delayed=False)
    session.flush()
    _insert(connection, table, entry, [(Decided(now, "enqueued", reason), made)])
    pending = select(table.c.id).where(table.c.id == schedules.c.last_attempt_id, table.c.status == Status.PENDING)
    free = (*_is(schedules, table, entry.key), ~pending.exists())
    connection.execute(update(schedules).where(*free).values(last_attempt_id=made))
    change = {"attempt_id": None}, {"attempt_id": str(made)}
    record_verb(connection, table, _job(table, entry), "run_now", None, *change)
    return made


def set_pause(engine: Engine, table: Table, entry: Entry, *, by: str | None, reason: str | None) -> bool:
    """Pause the entry; False when it was paused before, and nothing is changed."""
    schedules = companion_tables(table).schedules
    with engine.begin() as connection:
        is_there = entry.key in read(connection, table)
    if not is_there:
        adopt(engine, table, entry)
    stored = None if reason is None else storable(reason)
    values = {"paused_at": clock_now(), "paused_by": by, "pause_reason": stored}
    free = (*_is(schedules, table, entry.key), schedules.c.paused_at.is_(None))
    with engine.begin() as connection:
        is_new = connection.execute(update(schedules).where(*free).values(values)).rowcount == 1
        if is_new:
            after = _pause_of(connection, table, entry)
            record_verb(connection, table, _job(table, entry), "pause", reason, NOTHING, after)
        return is_new


def end_pause(engine: Engine, table: Table, entry: Entry) -> bool:
    """Resume the entry: its times count from now on. False when it was not paused."""
    schedules = companion_tables(table).schedules
    paused = (*_is(schedules, table, entry.key), schedules.c.paused_at.is_not(None))
    with engine.begin() as connection:
        before = _pause_of(connection, table, entry)
        resumed = update(schedules).where(*paused).values(**NOTHING, decided_until=clock_now())
        was_paused = connection.execute(resumed).rowcount == 1
        if was_paused:
            record_verb(connection, table, _job(table, entry), "resume", None, before, NOTHING)
        return was_paused


def _pause_of(connection: Connection, table: Table, entry: Entry) -> dict[str, Any]:
    """Its values, with its row locked."""
    schedules = companion_tables(table).schedules
    wanted: Any = select(*(schedules.c[name] for name in NOTHING)).where(*_is(schedules, table, entry.key))
    row = connection.execute(wanted.with_for_update()).first()
    return NOTHING if row is None else dict(zip(NOTHING, row, strict=True))


def _job(table: Table, entry: Entry) -> tuple[str, str]:
    """What its events are written with."""
    return companion_tables(table).schedules.name, fitting(entry.key)


def last_rows(connection: Connection, table: Table, key: str, limit: int) -> Sequence[Any]:
    """The last occurrences of an entry, the newest first."""
    occurrences = companion_tables(table).occurrences
    mine: Any = select(occurrences).where(*_is(occurrences, table, key))
    return connection.execute(mine.order_by(occurrences.c.fire_at.desc()).limit(limit)).all()


def _connection(session: Session, model: type[BaseAttempt]) -> Connection:
    """The one on which the session writes attempts: it may read from another engine."""
    return session.connection(bind_arguments=write_arguments(inspect(model)))


def _is(of: Table, table: Table, key: str) -> tuple[ColumnElement[bool], ...]:
    return of.c.job_type == table.name, of.c.schedule_key == key


def _enqueue(
    session: Session, model: type[BaseAttempt], entry: Entry, now: dt.datetime, *, is_delayed: bool = True
) -> uuid.UUID:
    given: dict[str, Any] = entry.attempt
    if entry.jitter and is_delayed:
        given["scheduled_at"] = now + entry.jitter * random.random()  # noqa: S311 - jitter is no secret
    made: BaseAttempt = (entry.model or model).create(**given, session=session)
    return made.id


def _forget(connection: Connection, table: Table, entry: Entry, before: dt.datetime) -> None:
    """Delete old rows of the entry. Its own row says that their times are decided, so that none is enqueued again."""
    occurrences = companion_tables(table).occurrences
    mine, fire_at = _is(occurrences, table, entry.key), occurrences.c.fire_at
    old = connection.scalars(select(fire_at).where(*mine, fire_at < before).order_by(fire_at).limit(FORGOTTEN)).all()
    if old:
        connection.execute(delete(occurrences).where(*mine, fire_at <= old[-1]))
