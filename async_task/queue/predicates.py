"""The statements of the hot path and of the sweeps, as SQLAlchemy expressions over one attempts table."""

import datetime as dt
import uuid
from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Select,
    SmallInteger,
    Table,
    Update,
    any_,
    column,
    func,
    literal,
    or_,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql

from async_task.database.clock import statement_now
from async_task.queue.claim import columns
from async_task.schema.states import Values, is_overdue, is_pending, is_waiting
from async_task.schema.tables import companion_tables

PRIORITIES = range(10)
Rows = Any
"""A select of several columns, whose type SQLAlchemy 2.0 and 2.1 spell differently."""
T = TypeVar("T")
Given: TypeAlias = T | BindParameter[Any]
"""A value, or the parameter through which it will come."""


def is_mine(table: Table, attempt_id: uuid.UUID, claim_id: uuid.UUID) -> tuple[ColumnElement[bool], ...]:
    """The fence: this attempt, still pending, still under this claim."""
    return table.c.id == attempt_id, table.c.claim_id == claim_id, is_pending(table)


def due(
    table: Table,
    *,
    began: Given[dt.datetime] | None = None,
    suspects: bool | None = None,
    targets: Given[Sequence[str]] = (),
    besides: Given[Sequence[tuple[str, str]]] = (),
) -> tuple[ColumnElement[bool], ...]:
    """Waiting, due, not overdue; suspects only, all but suspects, or (None) both; of `targets`, or (none) of any; of
    none of the calls `besides`, a target and a method each. With `began`: due when that run began, there by then, and
    not started since, by whomever: so that a run starts each once, and ends."""
    since: Any = statement_now() if began is None else _as_instant(table, began)
    once = () if began is None else (table.c.created_at <= since, func.coalesce(table.c.attempted_at, since) <= since)
    wanted = (table.c.target.in_(targets),) if _is_said(targets) else ()
    call = tuple_(table.c.target, table.c.method_name)
    unwanted = (call.not_in(besides),) if _is_said(besides) else ()
    chosen = (*_crashed(table, suspects), *wanted, *unwanted)
    return (*is_waiting(table), table.c.due_at <= since, ~is_overdue(table), *chosen, *once)


def _as_instant(table: Table, began: Any) -> Any:
    return began if isinstance(began, BindParameter) else literal(began, table.c.due_at.type)


def _is_said(names: Any) -> bool:
    return isinstance(names, BindParameter) or bool(names)


def due_in_priority(
    table: Table, queue: Given[str], priority: Any, conditions: Sequence[ColumnElement[bool]], limit: Given[int]
) -> Select[Any]:
    """The ids of the nearest due rows of one priority, locked; rows that somebody holds are skipped."""
    return (
        select(table.c.id)
        .where(table.c.queue == queue, table.c.priority == priority, *conditions)
        .order_by(table.c.due_at, table.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True, key_share=True)
    )


def nearest_due(
    table: Table, queue: Given[str], conditions: Sequence[ColumnElement[bool]], limit: Given[int],
    marks: BindParameter[Any] | None = None,
) -> Select[Any]:  # fmt: skip
    """The same over all priorities, first ones first: one lateral probe a priority, no sort, no walk over rows that are
    not due (PostgreSQL). `marks`: for each priority, when what is looked for was due at the earliest."""
    numbers: Any = postgresql.array[Any]([literal(number, SmallInteger) for number in PRIORITIES], type_=SmallInteger)
    priority, mark = column("priority", SmallInteger), column("mark", table.c.due_at.type)
    if marks is None:
        priorities = func.unnest(numbers).table_valued(priority, name="priorities").render_derived()
        since: tuple[Any, ...] = ()
    else:
        priorities = func.unnest(numbers, marks).table_valued(priority, mark, name="priorities").render_derived()
        since = (table.c.due_at >= priorities.c.mark,)
    probe = due_in_priority(table, queue, priorities.c.priority, (*conditions, *since), limit).lateral("probe")
    return select(probe.c.id).select_from(priorities.join(probe, true())).limit(limit)


def priorities_due(table: Table, queue: Given[str], conditions: Sequence[ColumnElement[bool]]) -> Rows:
    """One row, a column a priority: whether anything is due in it. One look into the index each."""
    due_in = looks(table, queue, conditions)
    return select(*(look.label(f"p{number}") for number, look in zip(PRIORITIES, due_in, strict=True)))


def looks(table: Table, queue: Any, conditions: Sequence[ColumnElement[bool]]) -> list[Any]:
    """For each priority of a queue: whether anything is so in it."""
    # The nearest, as a claim looks for it: where any one would do, PostgreSQL walks the table instead of the index.
    return [
        select(table.c.id)
        .where(table.c.queue == queue, table.c.priority == number, *conditions)
        .order_by(table.c.due_at, table.c.id)
        .limit(1)
        .scalar_subquery()
        .is_not(None)
        for number in PRIORITIES
    ]


def by_id(table: Table, attempt_id: uuid.UUID) -> Select[Any]:
    """The id of this attempt if it may be taken now, locked; nothing when somebody holds it."""
    may_start = (*is_waiting(table), table.c.due_at <= statement_now(), ~is_overdue(table))
    return (
        select(table.c.id).where(table.c.id == attempt_id, *may_start).with_for_update(skip_locked=True, key_share=True)
    )


def take(table: Table, found: Select[Any], values: Values) -> Update:
    """Claim what `found` locks, and return it, in one statement (PostgreSQL)."""
    # By id alone: the rows are locked and were checked, and the conditions once more would tempt the planner of a young
    # table to walk the whole claim index instead (64 ms beside 200,000 future rows, and by id 0.2 ms).
    ids = func.array(found.scalar_subquery())
    return update(table).where(table.c.id == any_(ids)).values(values).returning(*columns(table))


def take_ids(table: Table, ids: Given[Sequence[uuid.UUID]], values: Values) -> Update:
    """Claim rows that are locked already."""
    return update(table).where(table.c.id.in_(ids), *is_waiting(table)).values(values)


def taken(table: Table, claim_id: Given[uuid.UUID], ids: Given[Sequence[uuid.UUID]]) -> Rows:
    return select(*columns(table)).where(table.c.id.in_(ids), table.c.claim_id == claim_id)


def under(table: Table, claim_id: uuid.UUID) -> Rows:
    """What is claimed under this id; found in the index of live claims."""
    claimed = (is_pending(table), table.c.lease_until.is_not(None), table.c.claim_id == claim_id)
    return select(*columns(table)).where(*claimed)


def lock(table: Table, attempt_id: uuid.UUID, claim_id: uuid.UUID, *, waits: bool = True) -> Select[Any]:
    """The row lock under which a call is made, and the check that the claim still stands. Waits for a sweep or a verb
    that is about to change the row, so that what it answers is the truth."""
    found = select(table.c.id).where(*is_mine(table, attempt_id, claim_id))
    return found.with_for_update(key_share=True, skip_locked=not waits)


def settle(table: Table, attempt_id: uuid.UUID, claim_id: uuid.UUID, values: Values) -> Update:
    """The fenced write: hits one row, or none when somebody else was first."""
    return changed(table, values).where(*is_mine(table, attempt_id, claim_id))


def changed(table: Table, values: Values) -> Update:
    """Columns are set in the order of `values`: in what MySQL sets later it reads what it has set before."""
    return update(table).ordered_values(*values.items())


def standing(table: Table, attempt_id: uuid.UUID) -> Rows:
    """Where one attempt stands, judged by the database's clock."""
    return select(
        table.c.status, table.c.claim_id, table.c.claimed_by, table.c.attempted_at, table.c.num_attempts,
        table.c.due_at, (table.c.due_at <= statement_now()).label("is_due"), is_overdue(table).label("is_overdue"),
        table.c.order_key, table.c.released,
    ).where(table.c.id == attempt_id)  # fmt: skip


def orphans(
    table: Table, lease: dt.timedelta, limit: int, *, besides: Sequence[uuid.UUID] = (), alive: Sequence[str] = ()
) -> Rows:
    """Claims whose lease is past, whose row is not locked, and whose worker has not beaten for one `lease`; locked.
    Without the ids `besides` and the claims of the workers `alive`."""
    return (
        select(table.c.id, table.c.claimed_by, table.c.num_attempts, table.c.num_crashes, table.c.order_key)
        .where(*lapsed(table, lease), *_without(table.c.id, besides), *_without(table.c.claimed_by, alive))
        .order_by(table.c.lease_until, table.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True, key_share=True)
    )


def claims_of(table: Table, workers: Sequence[str], limit: int, *, besides: Sequence[uuid.UUID] = ()) -> Rows:
    """What these workers hold, whether the lease is past or not, without the ids `besides`; locked. Rows that somebody
    has locked are skipped."""
    c = table.c
    held = (is_pending(table), c.lease_until.is_not(None), c.claimed_by.in_(workers), *_without(c.id, besides))
    return (
        select(c.id, c.claimed_by, c.num_attempts, c.num_crashes, c.order_key, c.queue)
        .where(*held)
        .order_by(c.lease_until, c.id)
        .limit(limit)
        .with_for_update(skip_locked=True, key_share=True)
    )


def lapsed(table: Table, lease: dt.timedelta) -> tuple[ColumnElement[bool], ...]:
    """Claimed, with a lease that is past, by a worker that has not beaten for one `lease`."""
    workers = companion_tables(table).workers
    beating = select(workers.c.name).where(workers.c.name == table.c.claimed_by, has_beaten(table, lease))
    return is_pending(table), table.c.claim_id.is_not(None), table.c.lease_until <= statement_now(), ~beating.exists()


def has_beaten(table: Table, lease: dt.timedelta) -> ColumnElement[bool]:
    """Whether a worker has beaten within one `lease`."""
    return companion_tables(table).workers.c.beat_at > statement_now(-lease.total_seconds())


def overdue(table: Table, limit: int, *, besides: Sequence[uuid.UUID] = ()) -> Select[Any]:
    """Unclaimed rows past their `expires_at`, without the ids `besides`; locked."""
    return (
        select(table.c.id)
        .where(is_pending(table), table.c.claim_id.is_(None), is_overdue(table), *_without(table.c.id, besides))
        .order_by(table.c.expires_at, table.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True, key_share=True)
    )


def keys_of(table: Table, ids: Sequence[uuid.UUID]) -> Select[Any]:
    """The order keys of these attempts."""
    return select(table.c.order_key).where(table.c.id.in_(ids), table.c.order_key.is_not(None)).distinct()


def holds(table: Table) -> ColumnElement[bool]:
    """Whether a worker (of the enclosing statement) has a claim; found in the index of live claims."""
    claims = (
        is_pending(table),
        table.c.lease_until.is_not(None),
        table.c.claimed_by == companion_tables(table).workers.c.name,
    )
    return select(table.c.id).where(*claims).exists()


def next_queue(table: Table, after: str | None) -> Select[Any]:
    """The first queue behind `after` in which anything waits: one look into the index, however long the queues are."""
    behind = or_(literal(after is None), table.c.queue > (after or ""))
    return select(func.min(table.c.queue)).where(*is_waiting(table), behind)


def count(table: Table, conditions: Sequence[ColumnElement[bool]], limit: int) -> Select[Any]:
    """How many rows are so; `limit` are counted at most."""
    return select(func.count()).select_from(select(table.c.id).where(*conditions).limit(limit).subquery())


def in_hand(table: Table, by: ColumnElement[Any], limit: int) -> Rows:
    """How many claims there are of each `by`; of all together, `limit` are counted at most."""
    some = select(by.label("by")).where(is_pending(table), table.c.lease_until.is_not(None)).limit(limit).subquery()
    return select(some.c.by, func.count().label("number")).group_by(some.c.by)


def depth(table: Table, queue: str, limit: int) -> Rows:
    """How many of a queue are due, and how many wait in all; `limit` of each (the due ones: of each priority) are
    counted at most, from the index, however long the queue is."""
    waits = (*is_waiting(table), table.c.queue == queue)
    due_in: list[Any] = [
        count(table, (*waits, table.c.priority == number, table.c.due_at <= statement_now()), limit).scalar_subquery()
        for number in PRIORITIES
    ]
    due: Any = sum(due_in[1:], start=due_in[0])
    waiting = count(table, waits, limit).scalar_subquery()
    return select(literal(queue).label("queue"), due.label("due"), waiting.label("waiting"))


def calls_due(table: Table, conditions: Sequence[ColumnElement[bool]], head: ColumnElement[str]) -> Rows:
    """What is to be called, and by whom decrypted, in which queue, and how often; `head` tells the key."""
    kinds = (table.c.queue, table.c.target, table.c.method_name, table.c.encryptor, head)
    return select(*kinds, func.count().label("number")).where(*conditions).group_by(*kinds)


def _crashed(table: Table, suspects: bool | None) -> tuple[ColumnElement[bool], ...]:
    if suspects is None:
        return ()
    return (table.c.num_crashes > 0,) if suspects else (table.c.num_crashes == 0,)


def _without(column: ColumnElement[Any], values: Sequence[Any]) -> tuple[ColumnElement[bool], ...]:
    return (column.not_in(values),) if values else ()
