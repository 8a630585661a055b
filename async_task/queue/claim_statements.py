"""The statements of claiming, and of settling many at once, built once for each table: their parameters are sent."""

import datetime as dt
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple, Self, TypeVar

from sqlalchemy import (
    Integer,
    Select,
    String,
    Table,
    Update,
    Uuid,
    any_,
    bindparam,
    cast,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY

from async_task.database.clock import statement_now
from async_task.database.dialects import MYSQL
from async_task.queue import predicates
from async_task.queue.claim import ClaimRequest, columns
from async_task.schema.states import (
    Status,
    Values,
    claiming,
    ending,
    extending,
    is_overdue,
    is_pending,
    is_waiting,
    releasing_unstarted,
)
from async_task.schema.tables import companion_tables

S = TypeVar("S", Select[Any], Update)
Statement = Any
"""A select of several columns, whose type SQLAlchemy 2.0 and 2.1 spell differently."""


class Shape(NamedTuple):
    """What a claim asks for, beside its queue and number: only what was due when a run `began`; suspects, or all but
    these; of some `targets`; of all calls `besides` some; from `marks` on (PostgreSQL)."""

    began: bool = False
    suspects: bool = False
    targets: bool = False
    besides: bool = False
    marks: bool = False

    @classmethod
    def of(cls, request: ClaimRequest) -> Self:
        began = request.began is not None
        return cls(began, request.suspects, bool(request.targets), bool(request.besides), bool(request.marks))


@lru_cache(maxsize=256)
def claim(table: Table, lease: dt.timedelta, shape: Shape) -> Statement:
    """Take the nearest due attempts, in one statement (PostgreSQL). Takes `a_queue`, `a_number`, `a_claim`, `a_worker`,
    and what `shape` says: `since`, `some_targets`, `other_calls`, `marks`."""
    marks = bindparam("marks", type_=ARRAY(table.c.due_at.type)) if shape.marks else None
    found = predicates.nearest_due(table, bindparam("a_queue"), _due(table, shape), _a_number(), marks)
    return predicates.take(table, found, _claiming(table, lease))


@lru_cache(maxsize=256)
def priorities_due(table: Table, shape: Shape) -> Statement:
    """Elsewhere, first: in which priorities of `a_queue` anything is due."""
    return predicates.priorities_due(table, bindparam("a_queue"), _due(table, shape))


@lru_cache(maxsize=256)
def due_in_priority(table: Table, shape: Shape) -> Select[Any]:
    """Then: the ids of the nearest in `a_priority`, at most `a_number`, locked."""
    conditions = _due(table, shape)
    return predicates.due_in_priority(table, bindparam("a_queue"), bindparam("a_priority"), conditions, _a_number())


@lru_cache(maxsize=64)
def take_ids(table: Table, lease: dt.timedelta) -> Update:
    """Then: claim these `ids`, which are locked, under `a_claim` for `a_worker`."""
    return _by_key(table, predicates.take_ids(table, bindparam("ids", expanding=True), _claiming(table, lease)))


@lru_cache(maxsize=64)
def taken(table: Table) -> Statement:
    """At last: what of `ids` was claimed under `a_claim`."""
    return predicates.taken(table, _a_claim(table), bindparam("ids", expanding=True))


@lru_cache(maxsize=64)
def lock(table: Table, dialect: str) -> Statement:
    """Lock those of `ids` that are still ours under `a_claim`. PostgreSQL answers one row, which begins with how many;
    and ends the transaction when it idles, or one of its statements runs, for `a_limit` milliseconds. Others answer the
    ids."""
    found = _by_key(table, select(table.c.id).where(*_ours(table, dialect)).with_for_update(key_share=True))
    if dialect != "postgresql":
        return found
    limits = ("idle_in_transaction_session_timeout", "statement_timeout")
    return select(func.count(), *map(_limit, limits)).select_from(found.subquery("locked"))


@lru_cache(maxsize=64)
def ours(table: Table, dialect: str) -> Statement:
    """Those of `ids` that are still ours under `a_claim`."""
    return select(table.c.id).where(*_ours(table, dialect))


@lru_cache(maxsize=64)
def succeed(table: Table, dialect: str) -> Update:
    """Bring those of `ids` that are still ours under `a_claim` to rest."""
    return _change(table, dialect, _said(ending(table, Status.SUCCEEDED, last_error=None)))


@lru_cache(maxsize=64)
def give_back(table: Table, dialect: str) -> Update:
    """Give those of `ids` that are still ours under `a_claim` back: they were not started."""
    return _change(table, dialect, releasing_unstarted(table))


@lru_cache(maxsize=64)
def extend(table: Table, dialect: str, lease: dt.timedelta) -> Update:
    """Believe in the claim of those of `ids` that are still ours under `a_claim` for another lease."""
    return _change(table, dialect, extending(lease))


@lru_cache(maxsize=64)
def lost_claims(table: Table) -> Statement:
    """Claims of `a_worker` whose lease is past."""
    lost = (table.c.claimed_by == bindparam("a_worker"), table.c.lease_until <= statement_now())
    return select(*columns(table)).where(is_pending(table), table.c.claim_id.is_not(None), *lost)


QUEUE, PAUSED, LIMITED, UNKNOWN = "queue", "paused", "limited", "unknown"
KINDS = ARRIVALS, SUSPECTS, ORPHANS, OVERDUE = "arrivals", "suspects", "orphans", "overdue"


@lru_cache(maxsize=64)
def poll(table: Table, lease: dt.timedelta, wanted: tuple[str, ...], known: tuple[str, ...] | None = None) -> Statement:
    """Rows of a kind and a name: each queue in which anything is due, of those `wanted` or of all; each queue that is
    PAUSED, or LIMITED; and one of each of the KINDS of which there is something. Takes `a_worker`, whose lost claims
    count as orphans. With `known`, which are in order: of these queues; and some UNKNOWN one wherever there is any."""
    states = companion_tables(table).queues
    is_limited = or_(states.c.max_running.is_not(None), states.c.rate.is_not(None))
    lost = (table.c.claimed_by == bindparam("a_worker"), table.c.lease_until <= statement_now())
    held = (is_pending(table), table.c.claim_id.is_not(None))
    return union_all(
        *_due_in(table, wanted, known),
        select(literal(PAUSED), states.c.name).where(states.c.paused_at.is_not(None)),
        select(literal(LIMITED), states.c.name).where(is_limited),
        _flag(ARRIVALS, table, (is_pending(table), table.c.arrived)),
        _flag(SUSPECTS, table, predicates.due(table, suspects=True)),
        _flag(ORPHANS, table, predicates.lapsed(table, lease)),
        _flag(ORPHANS, table, (*held, *lost)),
        _flag(OVERDUE, table, (is_pending(table), table.c.claim_id.is_(None), is_overdue(table))),
    )


def _flag(kind: str, table: Table, conditions: tuple[Any, ...]) -> Statement:
    return select(literal(kind), null()).where(select(table.c.id).where(*conditions).exists())


def _due_in(table: Table, wanted: tuple[str, ...], known: tuple[str, ...] | None) -> Iterator[Statement]:
    conditions = predicates.due(table, suspects=False)
    for name in wanted or known or ():  # one by one: MariaDB finds its way in the index by a constant only
        yield select(literal(QUEUE), literal(name)).where(or_(*predicates.looks(table, literal(name), conditions)))
    if known is not None:
        yield from _unknown(table, known)
    elif not wanted:
        names = _names(table)
        due = predicates.looks(table, names.c.queue, conditions)
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


def _change(table: Table, dialect: str, values: Any) -> Update:
    return _by_key(table, predicates.changed(table, values).where(*_ours(table, dialect)))


def _said(values: Values) -> Values:
    """What is the same each time stands in the statement: each parameter is sent, and costs 8 us."""
    return {name: _literal(value) for name, value in values.items()}


def _literal(value: Any) -> Any:
    match value:
        case None:
            return null()
        case Status():
            return literal_column(f"'{value.value}'")
        case int():
            return literal_column(str(value))
        case _:
            return value


def _by_key(table: Table, statement: S) -> S:
    """Told to MySQL and MariaDB: in a small table they would rather walk over all rows, and wait for whatever is locked
    on the way."""
    for name in MYSQL:
        hinted: Any = statement.with_hint(text="FORCE INDEX (PRIMARY)", selectable=table, dialect_name=name)
        statement = hinted
    return statement


def _ours(table: Table, dialect: str) -> tuple[Any, ...]:
    # Nothing about the state: only what is pending is claimed, which a constraint keeps. By what partial indexes are
    # about, the planner would be tempted to walk one of them instead of going by id.
    return _among(table, dialect), table.c.claim_id == _a_claim(table)


def _among(table: Table, dialect: str) -> Any:
    if dialect == "postgresql":  # one parameter, however many they are: the statement's text stays the same
        return table.c.id == any_(cast(bindparam("ids", type_=String()), ARRAY(Uuid())))
    return table.c.id.in_(bindparam("ids", expanding=True))


def _due(table: Table, shape: Shape) -> tuple[Any, ...]:
    return predicates.due(
        table,
        began=bindparam("since", type_=table.c.due_at.type) if shape.began else None,
        suspects=shape.suspects,
        targets=bindparam("some_targets", expanding=True) if shape.targets else (),
        besides=bindparam("other_calls", expanding=True) if shape.besides else (),
    )


def _claiming(table: Table, lease: dt.timedelta) -> Any:
    return claiming(table, _a_claim(table), bindparam("a_worker"), lease)


def _a_claim(table: Table) -> Any:
    return bindparam("a_claim", type_=table.c.claim_id.type)


def _a_number() -> Any:
    return bindparam("a_number", type_=Integer())


def _limit(name: str) -> Any:
    # In a subselect of its own it is carried out once, and not for each row.
    is_local: Any = literal_column("true")
    return select(func.set_config(literal_column(f"'{name}'"), bindparam("a_limit"), is_local)).scalar_subquery()
