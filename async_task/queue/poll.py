"""A poll: one statement finds everything that a worker might have to do.

An idle worker that is notified of commits has fewer than 30 statements a minute.
"""

import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, bindparam, func, literal, null, or_, select, true, union_all

from async_task.database.clock import seconds_until, statement_now
from async_task.database.dialects import probes_laterally, walks_index_names
from async_task.database.text_lists import text_list
from async_task.queue import predicates
from async_task.queue.left_out import NOTHING, LeftOut, but
from async_task.schema.states import ONE, is_pending, is_waiting, waits_or_runs
from async_task.schema.tables import companion_tables

Statement = Any
"""A select of several columns, whose type SQLAlchemy 2.0 and 2.1 spell differently."""
Where = Callable[[Any], tuple[ColumnElement[bool], ...]]
QUEUE, PAUSED, LIMITED, UNKNOWN = "queue", "paused", "limited", "unknown"
NEXT, LEASE = "next", "lease"
ARRIVALS, SUSPECTS, ORPHANS, OVERDUE = "arrivals", "suspects", "orphans", "overdue"
AFTER_A_LEASE = 0.1
"""Seconds from the end of a lease until its claim may be an orphan: a heartbeat comes just after the leases."""


@dataclass(frozen=True, slots=True)
class PollResult:
    """`queues`: those in which something is due, without those that are `paused`. `limited`: those that have a limit in
    the database. The flags: whether there are keyed attempts that have just arrived; due suspects; orphans, or claims
    that this worker may have lost; attempts past their `expires_at`. `next_due`: in how many seconds the next attempt
    is due, or may be an orphan, of those that are there now; None if that is not within an hour. Only if it
    `knows_next`: not while something is unknown to it, which may hide others."""

    queues: frozenset[str]
    paused: frozenset[str]
    limited: frozenset[str]
    has_arrivals: bool
    has_suspects: bool
    has_orphans: bool
    has_overdue: bool
    knows_next: bool = False
    next_due: float | None = None


class SeenQueues:
    """The queues seen so far, for a server that cannot walk from name to name in its index (MySQL, MariaDB): it is
    asked for what lies between the known ones, or for the others among those wanted. The walk read all that waits:
    370 ms for 20,000 rows, now 3."""

    def __init__(self) -> None:
        self.seen: tuple[str, ...] = ()

    def poll(
        self, connection: Connection, table: Table, lease: dt.timedelta, wanted: tuple[str, ...],
        given: dict[str, Any], left_out: tuple[str, ...],
    ) -> Any:  # fmt: skip
        while True:
            found = connection.execute(statement(table, lease, wanted, self.seen, left_out), given)
            rows: Any = found.all()
            new = {name for kind, name in rows if kind == UNKNOWN and name is not None}
            if not new:
                return rows
            self.seen = tuple(sorted({*self.seen, *new}))


def poll(
    connection: Connection, table: Table, worker: str, lease: dt.timedelta, wanted: Sequence[str] = (),
    names: SeenQueues | None = None, unknown: LeftOut = NOTHING,
) -> PollResult:  # fmt: skip
    """What `worker` might have to do, in the queues `wanted` or in all; without what is `unknown` to it. On
    MySQL and MariaDB: one statement more for each queue that is not among `names` yet.

    Give it a connection in AUTOCOMMIT: a transaction that stays open keeps the worker's row, and other lanes wait to
    write their heartbeat.
    """
    found: dict[str, set[str | None]] = {}
    rows: Any
    given: dict[str, Any] = {"a_worker": worker} | unknown.parameters
    if not walks_index_names(connection.dialect):
        rows = (names or SeenQueues()).poll(connection, table, lease, tuple(wanted), given, unknown.parts)
    else:
        laterally = probes_laterally(connection.dialect)
        asked = statement(table, lease, tuple(wanted), left_out=unknown.parts, laterally=laterally)
        rows = connection.execute(asked, given)
    for kind, name in rows:
        found.setdefault(kind, set()).add(name)
    named = (frozenset(name for name in found.get(kind, ()) if name is not None) for kind in (QUEUE, PAUSED, LIMITED))
    due, paused, limited = named
    later = ((NEXT, 0.0), (LEASE, AFTER_A_LEASE))
    seconds = [float(one) + after for kind, after in later for one in found.get(kind, ()) if one is not None]
    return PollResult(
        due - paused, paused, limited,
        has_arrivals=ARRIVALS in found, has_suspects=SUSPECTS in found, has_orphans=ORPHANS in found,
        has_overdue=OVERDUE in found,
        knows_next=NEXT in found and not unknown.parts, next_due=min(seconds, default=None),
    )  # fmt: skip


@lru_cache(maxsize=64)
def statement(
    table: Table, lease: dt.timedelta, wanted: tuple[str, ...], known: tuple[str, ...] | None = None,
    left_out: tuple[str, ...] = (), *, laterally: bool = False,
) -> Statement:  # fmt: skip
    """Rows of a kind and a name: each QUEUE in which anything is due, of those `wanted` or of all; each queue that is
    PAUSED, or LIMITED; each flag of which there is something; of all queues, in how many seconds the NEXT attempt is
    due, and a LEASE ends. Takes `a_worker`, whose lost claims count as orphans. With `known`, in order: QUEUE only of
    these; and an UNKNOWN one wherever there is any. `left_out`: the parts of what is left out of what is due, whose
    parameters it takes. `laterally`: as `probes_laterally`.

    A worker that serves named queues serves the own ones of all their targets too. So those `wanted` may be hundreds,
    and have no branch each: on PostgreSQL that took 2 ms of planning for each.
    """
    unwanted = but(table, left_out)
    states = companion_tables(table).queues
    worker: Any = bindparam("a_worker", literal_execute=True)
    is_limited = or_(states.c.max_running.is_not(None), states.c.rate.is_not(None))
    return union_all(
        *_due_in(table, wanted, known, unwanted, laterally=laterally),
        select(_word(PAUSED), states.c.name).where(states.c.paused_at.is_not(None)),
        select(_word(LIMITED), states.c.name).where(is_limited),
        _flag(ARRIVALS, table, (is_pending(table), table.c.arrived)),
        _flag(SUSPECTS, table, predicates.due(table, suspects=True, left_out=unwanted)),
        _flag(ORPHANS, table, predicates.is_lost_or_orphan(table, lease, worker)),
        _flag(OVERDUE, table, predicates.can_expire(table)),
    )


def _word(name: str) -> ColumnElement[str]:
    # Part of the text. PostgreSQL plans a prepared statement without parameters once, and one with parameters each
    # time: 1.5 ms instead of 0.2.
    return literal(name, literal_execute=True)


def _flag(kind: str, table: Table, conditions: tuple[Any, ...]) -> Statement:
    return select(_word(kind), null()).where(select(table.c.id).where(*conditions).exists())


def _due_in(
    table: Table, wanted: tuple[str, ...], known: tuple[str, ...] | None, unwanted: predicates.Conditions, *,
    laterally: bool,
) -> Iterator[Statement]:  # fmt: skip
    conditions = predicates.due(table, suspects=False, left_out=unwanted)
    if known is None:
        yield from _due_anywhere(table, wanted, conditions, laterally=laterally)
        return
    for name in known if not wanted else sorted({*known} & {*wanted}):
        # One by one: MariaDB finds its way in the index by a constant only.
        yield select(_word(QUEUE), _word(name)).where(or_(*predicates.has_rows(table, _word(name), conditions)))
    yield from _unknown(table, wanted, known)


def _due_anywhere(
    table: Table, wanted: tuple[str, ...], conditions: predicates.Conditions, *, laterally: bool
) -> Iterator[Statement]:
    """The queues in which anything is due, when the next row is, and when a lease ends. Only a priority whose nearest
    row is due is searched for one that meets the conditions."""
    nearest = _nearest_in(table, wanted, laterally=laterally) if wanted else _nearest(table)
    is_due = nearest.c.due_at <= statement_now()
    # The walk begins at the nearest row: while an old snapshot is open, there is much in the index before it.
    since = (table.c.due_at >= nearest.c.due_at, *conditions)
    found = predicates.nearest(table, nearest.c.queue, nearest.c.priority, since)
    yield select(_word(QUEUE), nearest.c.queue).where(is_due, found.is_not(None))
    yield _soonest(NEXT, nearest.c.due_at)
    yield _soonest(LEASE, table.c.lease_until, *predicates.is_claimed(table))


def _soonest(kind: str, column: Any, *conditions: Any) -> Statement:
    # Within an hour: from an infinite instant nothing can be subtracted.
    soon = (column > statement_now(), column < statement_now(3600.0, is_text=True))
    return select(_word(kind), seconds_until(func.min(column))).where(*conditions, *soon)


def _unknown(table: Table, wanted: tuple[str, ...], known: tuple[str, ...]) -> Iterator[Statement]:
    """One look into the index before, between and behind the known ones, or for each other one of those wanted. Only
    without partial indexes."""
    if not wanted:
        for after, before in pairwise((None, *known, None)):
            between = _between(table, after, before)
            yield select(_word(UNKNOWN), func.min(table.c.queue)).where(*waits_or_runs(table), *between)
    for name in sorted({*wanted} - {*known}):
        holds = select(table.c.id).where(*waits_or_runs(table), table.c.queue == _word(name)).limit(ONE)
        yield select(_word(UNKNOWN), _word(name)).where(holds.exists())


def _between(table: Table, after: str | None, before: str | None) -> predicates.Conditions:
    return (
        *([table.c.queue > after] if after else []),
        *([table.c.queue < before] if before else []),
    )


def _nearest(table: Table) -> Any:
    """The nearest waiting row of each priority of each queue: two looks into the index for each, however many rows
    wait."""
    start = _first(table, lambda c: ()).scalar_subquery()
    found = select(*_shown(table)).where(table.c.id == start).cte("nearest", recursive=True)
    # Not `(queue, priority) > (...)`: SQLite walks all rows of the queue.
    same_queue = _first(table, lambda c: (c.queue == found.c.queue, c.priority > found.c.priority))
    next_queue = _first(table, lambda c: (c.queue > found.c.queue,))
    following = func.coalesce(*(one.correlate(found).scalar_subquery() for one in (same_queue, next_queue)))
    return found.union_all(select(*_shown(table)).select_from(found.join(table, table.c.id == following)))


def _nearest_in(table: Table, wanted: tuple[str, ...], *, laterally: bool) -> Any:
    """The same of these queues: one look for each of them, and one for each priority that is found."""

    def firsts(beside: Any, where: Where) -> Any:
        """The first waiting row for each row of `beside`."""
        if laterally:  # joined by its id, PostgreSQL may read the whole table instead of looking into the index
            row = _first(table, where, _shown).lateral()
            return select(*_shown(row)).select_from(beside.join(row, true()))
        first_id = _first(table, where).correlate(beside).scalar_subquery()
        return select(*_shown(table)).select_from(beside.join(table, table.c.id == first_id))

    names = text_list(wanted)
    if laterally:
        # PostgreSQL expects 100 rows of a list, and ten times as many after each step: it would compile that for 50 ms.
        # With a condition that is always true it expects one.
        value = names.c.value
        names = select(value).where(func.length(value) == func.char_length(value)).subquery()
    found = firsts(names, lambda c: (c.queue == names.c.value,)).cte("nearest", recursive=True)
    return found.union_all(firsts(found, lambda c: (c.queue == found.c.queue, c.priority > found.c.priority)))


def _first(table: Table, where: Where, shown: Callable[[Any], tuple[Any, ...]] = lambda row: (row.c.id,)) -> Any:
    """The first waiting row with these conditions, in the order of the index."""
    row: Any = table.alias()
    place = (row.c.queue, row.c.priority, row.c.due_at, row.c.id)
    return select(*shown(row)).where(*is_waiting(row), *where(row.c)).order_by(*place).limit(ONE)


def _shown(rows: Any) -> tuple[Any, ...]:
    return rows.c.queue, rows.c.priority, rows.c.due_at
