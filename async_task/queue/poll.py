"""A poll: one statement finds everything that a worker might have to do. An idle worker has 70 statements a minute."""

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from sqlalchemy import Connection, Table, bindparam, func, literal, null, or_, select, union_all

from async_task.database.dialects import walks_index_names
from async_task.queue import predicates
from async_task.schema.states import is_pending, is_waiting
from async_task.schema.tables import companion_tables

Statement = Any
"""A select of several columns, whose type SQLAlchemy 2.0 and 2.1 spell differently."""
QUEUE, PAUSED, LIMITED, UNKNOWN = "queue", "paused", "limited", "unknown"
FLAGS = ARRIVALS, SUSPECTS, ORPHANS, OVERDUE = "arrivals", "suspects", "orphans", "overdue"


@dataclass(frozen=True, slots=True)
class PollResult:
    """`queues`: those in which something is due, without those that are `paused`. `limited`: those that have a limit in
    the database. The flags: whether there are keyed attempts that have just arrived; due suspects; orphans, or claims
    that this worker may have lost; attempts past their `expires_at`."""

    queues: frozenset[str]
    paused: frozenset[str]
    limited: frozenset[str]
    has_arrivals: bool
    has_suspects: bool
    has_orphans: bool
    has_overdue: bool


class SeenQueues:
    """The queues seen so far, for a server that cannot walk from name to name in its index (MySQL, MariaDB): it is
    asked for what lies between the known ones. The walk read all that waits: 370 ms for 20,000 rows, now 3."""

    def __init__(self) -> None:
        self.seen: tuple[str, ...] = ()

    def poll(self, connection: Connection, table: Table, worker: str, lease: dt.timedelta) -> Any:
        while True:
            found = connection.execute(statement(table, lease, (), self.seen), {"a_worker": worker})
            rows: Any = found.all()
            new = {name for kind, name in rows if kind == UNKNOWN and name is not None}
            if not new:
                return rows
            self.seen = tuple(sorted({*self.seen, *new}))


def poll(
    connection: Connection, table: Table, worker: str, lease: dt.timedelta, wanted: Sequence[str] = (),
    names: SeenQueues | None = None,
) -> PollResult:  # fmt: skip
    """What `worker` might have to do, in the queues `wanted` or in all. On MySQL and MariaDB: one statement more for
    each queue that is not among `names` yet.

    Give it a connection in AUTOCOMMIT: a transaction that stays open keeps the worker's row, and other lanes wait to
    write their heartbeat.
    """
    found: dict[str, set[str | None]] = {}
    rows: Any
    if names is not None and not wanted and not walks_index_names(connection.dialect):
        rows = names.poll(connection, table, worker, lease)
    else:
        rows = connection.execute(statement(table, lease, tuple(wanted)), {"a_worker": worker})
    for kind, name in rows:
        found.setdefault(kind, set()).add(name)
    named = (frozenset(name for name in found.get(kind, ()) if name is not None) for kind in (QUEUE, PAUSED, LIMITED))
    due, paused, limited = named
    return PollResult(due - paused, paused, limited, *(flag in found for flag in FLAGS))


@lru_cache(maxsize=64)
def statement(
    table: Table, lease: dt.timedelta, wanted: tuple[str, ...], known: tuple[str, ...] | None = None
) -> Statement:
    """Rows of a kind and a name: each QUEUE in which anything is due, of those `wanted` or of all; each queue that is
    PAUSED, or LIMITED; and each of the FLAGS of which there is something. Takes `a_worker`, whose lost claims count as
    orphans. With `known`, in order: of these queues; and an UNKNOWN one wherever there is any."""
    states = companion_tables(table).queues
    is_limited = or_(states.c.max_running.is_not(None), states.c.rate.is_not(None))
    return union_all(
        *_due_in(table, wanted, known),
        select(literal(PAUSED), states.c.name).where(states.c.paused_at.is_not(None)),
        select(literal(LIMITED), states.c.name).where(is_limited),
        _flag(ARRIVALS, table, (is_pending(table), table.c.arrived)),
        _flag(SUSPECTS, table, predicates.due(table, suspects=True)),
        _flag(ORPHANS, table, predicates.is_orphan(table, lease)),
        _flag(ORPHANS, table, predicates.is_lost_claim(table, bindparam("a_worker"))),
        _flag(OVERDUE, table, predicates.can_expire(table)),
    )


def _flag(kind: str, table: Table, conditions: tuple[Any, ...]) -> Statement:
    return select(literal(kind), null()).where(select(table.c.id).where(*conditions).exists())


def _due_in(table: Table, wanted: tuple[str, ...], known: tuple[str, ...] | None) -> Iterator[Statement]:
    conditions = predicates.due(table, suspects=False)
    for name in wanted or known or ():  # one by one: MariaDB finds its way in the index by a constant only
        yield select(literal(QUEUE), literal(name)).where(or_(*predicates.has_rows(table, literal(name), conditions)))
    if known is not None:
        yield from _unknown(table, known)
    elif not wanted:
        names = _names(table)
        due = predicates.has_rows(table, names.c.queue, conditions)
        yield select(literal(QUEUE), names.c.queue).where(or_(*due))


def _unknown(table: Table, known: tuple[str, ...]) -> Iterator[Statement]:
    """One look into the index before, between and behind the known ones."""
    for after, before in pairwise((None, *known, None)):
        between = ([table.c.queue > after] if after else []) + ([table.c.queue < before] if before else [])
        yield select(literal(UNKNOWN), func.min(table.c.queue)).where(*is_waiting(table), *between)


def _names(table: Table) -> Any:
    """All queues in which anything waits: one look into the index for each, however long they are."""
    waiting = is_waiting(table)
    found = select(func.min(table.c.queue).label("queue")).where(*waiting).cte("names", recursive=True)
    behind = select(func.min(table.c.queue)).where(*waiting, table.c.queue > found.c.queue)
    following = select(behind.correlate(found).scalar_subquery()).where(found.c.queue.is_not(None))
    return found.union_all(following)
