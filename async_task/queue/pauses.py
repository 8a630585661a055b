"""Pauses: queues from which nothing is claimed for now. A paused target has a queue of its own."""

import datetime as dt
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Table, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from async_task.database.clock import clock_now
from async_task.error_text import storable
from async_task.schema.audit import record_verb
from async_task.schema.tables import companion_tables

NOTHING = {"paused_at": None, "paused_by": None, "pause_reason": None}
"""The values of a queue that is not paused."""


@dataclass(frozen=True, slots=True)
class QueueState:
    """A queue that is paused or limited. `paused_at`: since when, None when it is not paused; `paused_by` and `reason`
    as given to `pause`. `max_running`: maximum of calls at a time; `rate`: starts in a second; None without such a
    limit."""

    name: str
    paused_at: dt.datetime | None
    paused_by: str | None
    reason: str | None
    max_running: int | None
    rate: float | None


def pause(engine: Engine, table: Table, queue: str, *, by: str | None, reason: str | None) -> bool:
    """From now on nothing is claimed from the queue; running calls continue. False when it was paused before: nothing
    is changed. An event says who has paused it and why."""
    try:
        return _pause(engine, table, queue, by, reason)
    except IntegrityError:  # another process wrote the queue's row at the same time
        return _pause(engine, table, queue, by, reason)


def resume(engine: Engine, table: Table, queue: str) -> bool:
    """False when it was not paused."""
    queues = companion_tables(table).queues
    paused = (queues.c.name == queue, queues.c.paused_at.is_not(None))
    with engine.begin() as connection:
        before = _pause_of(connection, queues, queue)
        resumed = connection.execute(update(queues).where(*paused).values(NOTHING))
        if resumed.rowcount == 1:
            record_verb(connection, table, (queues.name, queue), "resume", None, before, NOTHING)
        unlimited = (queues.c.max_running.is_(None), queues.c.rate.is_(None), queues.c.paused_at.is_(None))
        connection.execute(delete(queues).where(queues.c.name == queue, *unlimited))
        return resumed.rowcount == 1


def queue_states(engine: Engine, table: Table) -> list[QueueState]:
    """All queues that are paused or limited, by name."""
    c = companion_tables(table).queues.c
    columns: Any = select(c.name, c.paused_at, c.paused_by, c.pause_reason, c.max_running, c.rate)
    with engine.begin() as connection:
        return [QueueState(*row) for row in connection.execute(columns.order_by(c.name)).all()]


def paused(engine: Engine, table: Table) -> frozenset[str]:
    """The names of the paused queues."""
    return frozenset(one.name for one in queue_states(engine, table) if one.paused_at is not None)


def _pause(engine: Engine, table: Table, queue: str, by: str | None, reason: str | None) -> bool:
    queues = companion_tables(table).queues
    stored = None if reason is None else storable(reason)
    values = {"paused_at": clock_now(), "paused_by": by, "pause_reason": stored}
    with engine.begin() as connection:
        row = connection.execute(select(queues.c.paused_at).where(queues.c.name == queue).with_for_update()).first()
        if row is None:
            connection.execute(insert(queues).values(name=queue, **values))
        elif row.paused_at is None:
            connection.execute(update(queues).where(queues.c.name == queue).values(values))
        if row is None or row.paused_at is None:
            after = _pause_of(connection, queues, queue)
            record_verb(connection, table, (queues.name, queue), "pause", reason, NOTHING, after)
        return row is None or row.paused_at is None


def _pause_of(connection: Connection, queues: Table, queue: str) -> dict[str, Any]:
    """Its values, with its row locked."""
    wanted: Any = select(*(queues.c[name] for name in NOTHING)).where(queues.c.name == queue).with_for_update()
    row = connection.execute(wanted).first()
    return NOTHING if row is None else dict(zip(NOTHING, row, strict=True))
