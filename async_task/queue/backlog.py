"""The backlog: what waits and what is due. Nothing is written; each function is one transaction."""

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Select, Table, func, literal, not_, select, union_all

from async_task.database.clock import clock_now, statement_now
from async_task.database.dialects import has_partial_indexes
from async_task.queue import claim_statements, predicates
from async_task.queue.claim_statements import Shape
from async_task.queue.left_out import NOTHING, LeftOut
from async_task.schema.states import is_waiting, waits_or_runs

MOST_COUNTED = 10_000
"""The maximum that is counted: to count millions takes seconds."""
Rows = Any
"""A select of several columns, whose type SQLAlchemy 2.0 and 2.1 spell differently."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Which attempts a batch is about: those in `queues`, if any are named; and of `targets`, likewise, by every name
    that a row may hold."""

    queues: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()


def queues(engine: Engine, table: Table, wanted: Iterable[str] = ()) -> tuple[list[str], dt.datetime]:
    """The `waiting_queues`, or those `wanted`; and the database's clock before they were read."""
    found = list(wanted)
    with engine.begin() as connection:
        now = connection.scalar(select(clock_now()))
        assert now is not None
        if not found:
            found.extend(waiting_queues(connection, table))
        return found, now


def waiting_queues(connection: Connection, table: Table, most: int | None = None) -> list[str]:
    """The queues in which anything waits, by name, `most` of them if it is given: one look into the index for each,
    however long it is. Without partial indexes also those in which something only runs."""
    waits = is_waiting(table) if has_partial_indexes(connection.dialect) else waits_or_runs(table)
    names: list[str] = []
    while most is None or len(names) < most:
        further = [table.c.queue > names[-1]] if names else []
        found = select(table.c.queue).where(*waits, *further).order_by(table.c.queue).limit(1)
        if (name := connection.scalar(found)) is None:
            break
        names.append(name)
    return names


def with_due(
    engine: Engine, table: Table, names: Iterable[str], began: dt.datetime, targets: Sequence[str], *, suspects: bool,
    left_out: LeftOut = NOTHING,
) -> list[str]:  # fmt: skip
    """Those of these queues in which anything is due: suspects, or all but suspects. Locked rows count too. `left_out`:
    not of these."""
    shape = Shape(began=True, suspects=suspects, targets=bool(targets), left_out=left_out.parts)
    is_due = claim_statements.priorities_due(table, shape)
    wanted: dict[str, Any] = {"since": began} | ({"some_targets": targets} if targets else {})
    wanted |= left_out.parameters
    with engine.begin() as connection:
        return [name for name in names if any(connection.execute(is_due, wanted | {"a_queue": name}).one())]


def with_suspects(engine: Engine, table: Table, wanted: Sequence[str] = ()) -> list[str]:
    """The queues in which suspects are due, of those `wanted` or of all."""
    conditions = predicates.due(table, suspects=True)
    with engine.begin() as connection:
        found = connection.scalars(select(table.c.queue).where(*conditions).distinct()).all()
        return [name for name in found if not wanted or name in wanted]


def left(
    engine: Engine, table: Table, names: Sequence[str], began: dt.datetime, targets: Sequence[str],
    *, only: LeftOut = NOTHING, left_out: LeftOut = NOTHING,
) -> int:  # fmt: skip
    """How many attempts a batch has still to start, of `only` these or of all; MOST_COUNTED at most. `left_out`: not of
    these."""
    conditions = [table.c.queue.in_(names), *predicates.due(table, began=began, targets=targets)]
    conditions += [only.is_any_of(table)] if only.parts else []
    conditions += [not_(left_out.is_any_of(table))] if left_out.parts else []
    with engine.begin() as connection:
        return connection.scalar(_count(table, conditions, MOST_COUNTED)) or 0


def calls_due(table: Table, conditions: Sequence[ColumnElement[bool]], head: ColumnElement[str]) -> Rows:
    """How many attempts meet the conditions, by queue, target, method, encryptor, and `head`, which names the key."""
    kinds = (table.c.queue, table.c.target, table.c.method_name, table.c.encryptor, head)
    return select(*kinds, func.count().label("number")).where(*conditions).group_by(*kinds)


@dataclass(frozen=True, slots=True)
class Depth:
    """Of one queue: how many attempts are `due`, how many are due `later`, and how many are `claimed`; of each,
    MOST_COUNTED at most. Attempts that wait for an earlier one of their order key are in none of these."""

    queue: str
    due: int
    later: int
    claimed: int


def depths(engine: Engine, table: Table, wanted: Sequence[str] = ()) -> list[Depth]:
    """The depths of the queues `wanted`, or of all, and of those in which anything is claimed. Two statements; for all
    queues, one more for each."""
    names = list(wanted) or queues(engine, table)[0]
    with engine.begin() as connection:
        found: Any = connection.execute(num_claims(table, table.c.queue, MOST_COUNTED)).all()
        claimed: dict[str, int] = dict(found)
        known = [*names, *(name for name in claimed if name not in names)]
        if not known:
            return []
        rows: Any = connection.execute(union_all(*(_depth(table, name, MOST_COUNTED) for name in known))).all()
    made = (
        Depth(name, min(due, MOST_COUNTED), max(0, waiting - due), claimed.get(name, 0)) for name, due, waiting in rows
    )
    return sorted(made, key=lambda depth: depth.queue)


def num_claims(table: Table, by: ColumnElement[Any], limit: int) -> Rows:
    """How many claims there are for each value of `by`; of all together `limit` are counted at most."""
    some = select(by.label("by")).where(*predicates.is_claimed(table)).limit(limit).subquery()
    return select(some.c.by, func.count().label("number")).group_by(some.c.by)


def _count(table: Table, conditions: Sequence[ColumnElement[bool]], limit: int) -> Select[Any]:
    """How many rows meet the conditions; `limit` are counted at most."""
    return select(func.count()).select_from(select(table.c.id).where(*conditions).limit(limit).subquery())


def _depth(table: Table, queue: str, limit: int) -> Rows:
    """How many attempts of a queue are due, and how many wait in all. `limit` of each (of those due: in each priority)
    are counted at most, from the index, however long the queue is."""
    waits = (*is_waiting(table), table.c.queue == queue)
    due_in: list[Any] = [
        _count(table, (*waits, table.c.priority == number, table.c.due_at <= statement_now()), limit).scalar_subquery()
        for number in predicates.PRIORITIES
    ]
    due: Any = sum(due_in[1:], start=due_in[0])
    waiting = _count(table, waits, limit).scalar_subquery()
    return select(literal(queue).label("queue"), due.label("due"), waiting.label("waiting"))
