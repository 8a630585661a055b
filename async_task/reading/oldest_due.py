"""For how long the oldest attempt has been due: the figure to alarm on. It costs two looks into an index for each
queue, and one for each of its priorities, however many attempts wait."""

import datetime as dt
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table, literal_column, select, union_all
from sqlalchemy.orm import Session

from async_task.queue.backlog import waiting_queues
from async_task.queue.predicates import PRIORITIES
from async_task.reading.pages import clock_of
from async_task.schema.states import is_waiting
from async_task.schema.tables import companion_tables

MOST_QUEUES = 1_000
"""How many queues are read at most."""


@dataclass(frozen=True, slots=True)
class OldestDue:
    """`age`: for how long the oldest attempt has been due that a worker might start now; zero where nothing is due.
    `queue`, `attempt_id`: which it is; None where nothing is due. Attempts of paused queues do not count: they wait
    because somebody said so. `is_complete`: whether all queues were read; else the first 1,000 by name."""

    age: dt.timedelta
    queue: str | None
    attempt_id: uuid.UUID | None
    is_complete: bool
    read_at: dt.datetime


def oldest_due_of(session: Session, table: Table, queues: Sequence[str] = ()) -> OldestDue:
    """Two statements, and one for each queue, or two where no `queues` are named."""
    now, paused = clock_of(session), _paused(session, table)
    names = queues or waiting_queues(session.connection(), table, MOST_QUEUES)
    found: tuple[dt.datetime, str, uuid.UUID] | None = None
    for name in names:
        rows: Any = [] if name in paused else session.execute(_first_of_each_priority(table, name))
        for due_at, attempt_id in rows:
            if due_at <= now and (found is None or due_at < found[0]):
                found = (due_at, name, attempt_id)
    is_complete = bool(queues) or len(names) < MOST_QUEUES
    if found is None:
        return OldestDue(dt.timedelta(0), None, None, is_complete, now)
    due_at, name, attempt_id = found
    return OldestDue(now - due_at, name, attempt_id, is_complete, now)


def _paused(session: Session, table: Table) -> frozenset[str]:
    states = companion_tables(table).queues
    return frozenset(session.scalars(select(states.c.name).where(states.c.paused_at.is_not(None))))


def _first_of_each_priority(table: Table, queue: str) -> Any:
    """The nearest waiting row of each priority of a queue: by constants, by which MariaDB finds its way in the index
    too."""
    c, parts = table.c, list[Any]()
    for priority in PRIORITIES:
        place = (*is_waiting(table), c.queue == queue, c.priority == literal_column(str(priority)))
        first: Any = select(c.due_at, c.id).where(*place).order_by(c.due_at, c.id).limit(1)
        parts.append(select(first.subquery()))  # a part of a UNION has no LIMIT on SQLite
    return union_all(*parts)
