"""The statements of claiming, built once for each table; what differs from claim to claim is a parameter."""

import datetime as dt
from collections.abc import Collection
from functools import lru_cache
from typing import Any, NamedTuple, Self

from sqlalchemy import (
    Integer,
    Select,
    SmallInteger,
    Table,
    Update,
    any_,
    bindparam,
    column,
    func,
    literal_column,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql

from async_task.database.clock import statement_now
from async_task.database.dialects import by_primary_key
from async_task.queue import predicates
from async_task.queue.claim import ClaimRequest, columns, known_fields
from async_task.queue.left_out import but
from async_task.schema.states import claiming, is_overdue, is_pending, is_waiting

Statement = Any
"""A select of several columns, whose type SQLAlchemy 2.0 and 2.1 spell differently."""


class Shape(NamedTuple):
    """Which parts a `ClaimRequest` has: each set of parts is a statement of its own."""

    began: bool = False
    suspects: bool = False
    targets: bool = False
    left_out: tuple[str, ...] = ()
    marks: bool = False

    @classmethod
    def of(cls, request: ClaimRequest) -> Self:
        began = request.began is not None
        return cls(began, request.suspects, bool(request.targets), request.left_out.parts, bool(request.marks))

    @property
    def is_one_text(self) -> bool:
        """Whether the text of the claim is always the same: it does not depend on how many targets or calls there
        are."""
        return not (self.targets or self.left_out)


@lru_cache(maxsize=256)
def claim(table: Table, lease: dt.timedelta, shape: Shape, number: int | None = None) -> Statement:
    """Claim the nearest due attempts, in one statement (PostgreSQL). Takes `a_queue`, `a_claim`, `a_worker`, `a_number`
    unless its `number` is written into it, and, by `shape`, `since`, `some_targets`, `marks` and the parameters of what
    is left out. Returns them without their `known_fields`."""
    found = _nearest_due(table, shape, _a_number() if number is None else _literal(number))
    return _claim_found(table, found, lease, without=known_fields(suspects=shape.suspects))


def written_number(number: int) -> int | None:
    """`number`, if `claim` is to have it written into it: PostgreSQL keeps the plan of a LIMIT that it knows. Otherwise
    None: a connection keeps 100 prepared statements, and these numbers are those that lanes mostly ask for."""
    return number if number in _WRITTEN else None


_WRITTEN = frozenset(range(1, 9)) | {number for power in range(9) for number in (2**power, 500 >> power)}
"""The sizes of an adaptive batch, which doubles and halves, and small ones."""


@lru_cache(maxsize=256)
def priorities_due(table: Table, shape: Shape) -> Statement:
    """One row, a column for each priority of `a_queue`: whether anything is due in it."""
    due_in = predicates.has_rows(table, bindparam("a_queue"), _due(table, shape))
    return select(*(is_due.label(f"p{number}") for number, is_due in zip(predicates.PRIORITIES, due_in, strict=True)))


@lru_cache(maxsize=256)
def lock_due(table: Table, shape: Shape) -> Select[Any]:
    """The ids of the nearest `a_number` due attempts of `a_priority`, locked; rows that are locked are skipped."""
    return _lock_due(table, bindparam("a_priority"), _due(table, shape), _a_number())


@lru_cache(maxsize=64)
def claim_locked(table: Table, lease: dt.timedelta) -> Update:
    """Claim `ids`, which are locked, under `a_claim` for `a_worker`."""
    ids: Any = bindparam("ids", expanding=True)
    change = update(table).where(table.c.id.in_(ids), *is_waiting(table)).values(_values(table, lease))
    return by_primary_key(table, change)


@lru_cache(maxsize=64)
def claimed(table: Table) -> Statement:
    """What of `ids` is claimed under `a_claim`."""
    return select(*columns(table)).where(
        table.c.id.in_(bindparam("ids", expanding=True)), table.c.claim_id == _a_claim(table)
    )


@lru_cache(maxsize=64)
def lock_one(table: Table) -> Select[Any]:
    """`an_id`, locked, if that attempt can be claimed now; nothing if it is locked."""
    can_start = (*is_waiting(table), table.c.due_at <= statement_now(), ~is_overdue(table))
    found = select(table.c.id).where(table.c.id == bindparam("an_id"), *can_start)
    return found.with_for_update(skip_locked=True, key_share=True)


@lru_cache(maxsize=64)
def claim_one(table: Table, lease: dt.timedelta) -> Statement:
    """Claim `an_id`, in one statement (PostgreSQL). Takes `a_claim` and `a_worker`."""
    return _claim_found(table, lock_one(table), lease)


@lru_cache(maxsize=64)
def under(table: Table) -> Statement:
    """What is claimed under `a_claim`."""
    return select(*columns(table)).where(*predicates.is_claimed(table), table.c.claim_id == _a_claim(table))


@lru_cache(maxsize=64)
def lost_claims(table: Table) -> Statement:
    """Claims of `a_worker` whose lease is past."""
    return select(*columns(table)).where(*predicates.is_lost_claim(table, bindparam("a_worker")))


@lru_cache(maxsize=64)
def claims_of(table: Table) -> Statement:
    """All claims of `a_worker`; found in the index of live claims."""
    claimed = (is_pending(table), table.c.lease_until.is_not(None), table.c.claimed_by == bindparam("a_worker"))
    return select(*columns(table)).where(*claimed)


def _nearest_due(table: Table, shape: Shape, number: Any) -> Select[Any]:
    """One lateral probe for each priority, most urgent first: no sort, and no walk over rows that are not due.

    With `marks` a probe begins at the `due_at` that earlier claims have reached. While a session holds an old snapshot,
    the index keeps every row claimed since then, and a probe from the front walks over all of them.
    """
    numbers = literal_column(
        f"'{{{','.join(map(str, predicates.PRIORITIES))}}}'::smallint[]", postgresql.ARRAY(SmallInteger)
    )
    priority, mark = column("priority", SmallInteger), column("mark", table.c.due_at.type)
    if shape.marks:
        marks = bindparam("marks", type_=postgresql.ARRAY(table.c.due_at.type))
        priorities = func.unnest(numbers, marks).table_valued(priority, mark, name="priorities").render_derived()
        since: tuple[Any, ...] = (table.c.due_at >= priorities.c.mark,)
    else:
        priorities = func.unnest(numbers).table_valued(priority, name="priorities").render_derived()
        since = ()
    probe = _lock_due(table, priorities.c.priority, (*_due(table, shape), *since), number).lateral("probe")
    return select(probe.c.id).select_from(priorities.join(probe, true())).limit(number)


def _lock_due(table: Table, priority: Any, conditions: tuple[Any, ...], number: Any) -> Select[Any]:
    return (
        select(table.c.id)
        .where(table.c.queue == bindparam("a_queue"), table.c.priority == priority, *conditions)
        .order_by(table.c.due_at, table.c.id)
        .limit(number)
        .with_for_update(skip_locked=True, key_share=True)
    )


def _claim_found(table: Table, found: Select[Any], lease: dt.timedelta, without: Collection[str] = ()) -> Statement:
    """Claim what `found` locks, and return it, but for the columns `without`."""
    # By id alone: the rows are locked and were checked. With the conditions once more, the planner of a young table
    # walks the whole claim index (64 ms beside 200,000 future rows; by id 0.2 ms).
    ids = func.array(found.scalar_subquery())
    return (
        update(table).where(table.c.id == any_(ids)).values(_values(table, lease)).returning(*columns(table, without))
    )


def _due(table: Table, shape: Shape) -> tuple[Any, ...]:
    return predicates.due(
        table,
        began=bindparam("since", type_=table.c.due_at.type) if shape.began else None,
        suspects=shape.suspects,
        targets=bindparam("some_targets", expanding=True) if shape.targets else (),
        left_out=but(table, shape.left_out),
    )


def _values(table: Table, lease: dt.timedelta) -> Any:
    return claiming(table, _a_claim(table), bindparam("a_worker"), lease)


def _a_claim(table: Table) -> Any:
    return bindparam("a_claim", type_=table.c.claim_id.type)


def _a_number() -> Any:
    return bindparam("a_number", type_=Integer())


def _literal(number: int) -> Any:
    return literal_column(str(number), Integer())
