"""Pauses: queues from which nothing is claimed until somebody says so. A target that shares its queue with others is
paused in a lane of its own, into which those that are claimed of it are set aside, uncharged."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, Table, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from async_task.database.clock import written
from async_task.queue import predicates
from async_task.queue.claim import Claim
from async_task.schema.states import is_pending, setting_aside
from async_task.schema.tables import beside


@dataclass(frozen=True, slots=True)
class QueueState:
    """A queue that is paused or limited. `paused_at`: since when, None when it is not paused; `paused_by` and `reason`
    as they were said. `max_running`: calls at a time; `rate`: starts in a second; None without such a limit."""

    name: str
    paused_at: dt.datetime | None
    paused_by: str | None
    reason: str | None
    max_running: int | None
    rate: float | None


def pause(engine: Engine, table: Table, queue: str, *, by: str | None, reason: str | None) -> bool:
    """From now on nothing is claimed from it; what is being performed goes on. False when it was paused before, which
    then stands as it was."""
    try:
        return _pause(engine, table, queue, by, reason)
    except IntegrityError:  # somebody else wrote its row down at the same time
        return _pause(engine, table, queue, by, reason)


def resume(engine: Engine, table: Table, queue: str) -> bool:
    """False when it was not paused."""
    queues = beside(table).queues
    paused = (queues.c.name == queue, queues.c.paused_at.is_not(None))
    with engine.begin() as connection:
        nothing = {"paused_at": None, "paused_by": None, "pause_reason": None}
        resumed = connection.execute(update(queues).where(*paused).values(nothing))
        unlimited = (queues.c.max_running.is_(None), queues.c.rate.is_(None), queues.c.paused_at.is_(None))
        connection.execute(delete(queues).where(queues.c.name == queue, *unlimited))
        return resumed.rowcount == 1


def states(engine: Engine, table: Table) -> list[QueueState]:
    """All queues that are paused or limited, by name."""
    c = beside(table).queues.c
    columns: Any = select(c.name, c.paused_at, c.paused_by, c.pause_reason, c.max_running, c.rate)
    with engine.begin() as connection:
        return [QueueState(*row) for row in connection.execute(columns.order_by(c.name)).all()]


def paused(engine: Engine, table: Table) -> frozenset[str]:
    """The names of the queues that are paused."""
    return frozenset(one.name for one in states(engine, table) if one.paused_at is not None)


def set_aside(engine: Engine, table: Table, claims: Sequence[Claim], lane: str) -> int:
    """Give claims back that nobody has started, uncharged, into the queue `lane`. Answers how many."""
    mine = (table.c.id.in_([one.id for one in claims]), table.c.claim_id.in_({one.claim_id for one in claims}))
    with engine.begin() as connection:
        change = predicates.changed(table, setting_aside(table, lane)).where(*mine, is_pending(table))
        return connection.execute(change).rowcount


def _pause(engine: Engine, table: Table, queue: str, by: str | None, reason: str | None) -> bool:
    queues = beside(table).queues
    said = {"paused_at": written(), "paused_by": by, "pause_reason": reason}
    with engine.begin() as connection:
        row = connection.execute(select(queues.c.paused_at).where(queues.c.name == queue).with_for_update()).first()
        if row is None:
            connection.execute(insert(queues).values(name=queue, **said))
        elif row.paused_at is None:
            connection.execute(update(queues).where(queues.c.name == queue).values(said))
        return row is None or row.paused_at is None
