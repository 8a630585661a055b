"""The statements of claiming, and of settling many at once, built once for each table: their parameters are sent."""

import datetime as dt
from functools import lru_cache
from typing import Any, NamedTuple

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

from async_task import queries
from async_task.claims import columns
from async_task.dialects import compared
from async_task.status import Status
from async_task.tables import beside
from async_task.transitions import claiming, ending, extending, returning

Statement = Any
"""A select of several columns, whose type SQLAlchemy 2.0 and 2.1 spell differently."""


class Shape(NamedTuple):
    """What a claim asks for, beside its queue and number: only what was due when a run `began`; suspects, or all but
    these; of some `targets`; of all calls `besides` some."""

    began: bool = False
    suspects: bool = False
    targets: bool = False
    besides: bool = False


@lru_cache(maxsize=256)
def claim(table: Table, lease: dt.timedelta, shape: Shape) -> Statement:
    """Take the nearest due attempts, in one statement (PostgreSQL). Takes `a_queue`, `a_number`, `a_claim`, `a_worker`,
    and what `shape` says: `since`, `some_targets`, `other_calls`."""
    found = queries.nearest_due(table, bindparam("a_queue"), _due(table, shape), _a_number())
    return queries.take(table, found, _claiming(table, lease))


@lru_cache(maxsize=256)
def priorities_due(table: Table, shape: Shape) -> Statement:
    """Elsewhere, first: in which priorities of `a_queue` anything is due."""
    return queries.priorities_due(table, bindparam("a_queue"), _due(table, shape))


@lru_cache(maxsize=256)
def due_in_priority(table: Table, shape: Shape) -> Select[Any]:
    """Then: the ids of the nearest in `a_priority`, at most `a_number`, locked."""
    conditions = _due(table, shape)
    return queries.due_in_priority(table, bindparam("a_queue"), bindparam("a_priority"), conditions, _a_number())


@lru_cache(maxsize=64)
def take_ids(table: Table, lease: dt.timedelta) -> Update:
    """Then: claim these `ids`, which are locked, under `a_claim` for `a_worker`."""
    return queries.take_ids(table, bindparam("ids", expanding=True), _claiming(table, lease))


@lru_cache(maxsize=64)
def taken(table: Table) -> Statement:
    """At last: what of `ids` was claimed under `a_claim`."""
    return queries.taken(table, _a_claim(table), bindparam("ids", expanding=True))


@lru_cache(maxsize=64)
def lock(table: Table, dialect: str) -> Statement:
    """Lock those of `ids` that are still ours under `a_claim`. PostgreSQL answers one row, which begins with how many;
    and ends the transaction when it idles, or one of its statements runs, for `a_limit` milliseconds. Others answer the
    ids."""
    found = select(table.c.id).where(*_ours(table, dialect)).with_for_update(key_share=True)
    # Else MariaDB may walk another index, or all rows, and wait there for a lock of somebody else's.
    found = found.with_hint(table, "FORCE INDEX (PRIMARY)", "mysql").with_hint(
        table, "FORCE INDEX (PRIMARY)", "mariadb"
    )
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
    return _change(table, dialect, ending(table, Status.SUCCEEDED, last_error=None))


@lru_cache(maxsize=64)
def give_back(table: Table, dialect: str) -> Update:
    """Give those of `ids` that are still ours under `a_claim` back: they were not started."""
    return _change(table, dialect, returning(table))


@lru_cache(maxsize=64)
def extend(table: Table, dialect: str, lease: dt.timedelta) -> Update:
    """Believe in the claim of those of `ids` that are still ours under `a_claim` for another lease."""
    return _change(table, dialect, extending(lease))


@lru_cache(maxsize=64)
def strays(table: Table) -> Statement:
    """Claims of `a_worker` whose lease is past."""
    lost = (table.c.claimed_by == bindparam("a_worker"), table.c.lease_until <= compared())
    return select(*columns(table)).where(queries.is_pending(table), table.c.claim_id.is_not(None), *lost)


QUEUE, PAUSED, LIMITED = "queue", "paused", "limited"
KINDS = ARRIVALS, SUSPECTS, ORPHANS, OVERDUE = "arrivals", "suspects", "orphans", "overdue"


@lru_cache(maxsize=64)
def look(table: Table, lease: dt.timedelta, wanted: tuple[str, ...]) -> Statement:
    """Rows of a kind and a name: each queue in which anything is due, of those `wanted` or of all; each queue that is
    PAUSED, or LIMITED; and one of each of the KINDS of which there is something. Takes `a_worker`, whose lost claims
    count as orphans."""
    states = beside(table).queues
    is_limited = or_(states.c.max_running.is_not(None), states.c.rate.is_not(None))
    names = _these(wanted) if wanted else _names(table)
    conditions = queries.due(table, suspects=False)
    due = select(literal(QUEUE), names.c.queue).where(or_(*queries.looks(table, names.c.queue, conditions)))
    lost = (table.c.claimed_by == bindparam("a_worker"), table.c.lease_until <= compared())
    held = (queries.is_pending(table), table.c.claim_id.is_not(None))
    return union_all(
        due,
        select(literal(PAUSED), states.c.name).where(states.c.paused_at.is_not(None)),
        select(literal(LIMITED), states.c.name).where(is_limited),
        _flag(ARRIVALS, table, (queries.is_pending(table), table.c.arrived)),
        _flag(SUSPECTS, table, queries.due(table, suspects=True)),
        _flag(ORPHANS, table, queries.lapsed(table, lease)),
        _flag(ORPHANS, table, (*held, *lost)),
        _flag(OVERDUE, table, (queries.is_pending(table), table.c.claim_id.is_(None), queries.is_overdue(table))),
    )


def _flag(kind: str, table: Table, conditions: tuple[Any, ...]) -> Statement:
    return select(literal(kind), null()).where(select(table.c.id).where(*conditions).exists())


def _these(wanted: tuple[str, ...]) -> Any:
    first, *others = (select(literal(name).label("queue")) for name in wanted)
    return first.union_all(*others).subquery("names") if others else first.subquery("names")


def _names(table: Table) -> Any:
    """All queues in which anything waits: one look into the index for each, however long they are."""
    waiting = queries.is_waiting(table)
    found = select(func.min(table.c.queue).label("queue")).where(*waiting).cte("names", recursive=True)
    behind = select(func.min(table.c.queue)).where(*waiting, table.c.queue > found.c.queue)
    following = select(behind.correlate(found).scalar_subquery()).where(found.c.queue.is_not(None))
    return found.union_all(following)


def _change(table: Table, dialect: str, values: Any) -> Update:
    return queries.changed(table, values).where(*_ours(table, dialect))


def _ours(table: Table, dialect: str) -> tuple[Any, ...]:
    # Nothing about the state: only what is pending is claimed, which a constraint keeps. By what partial indexes are
    # about, the planner would be tempted to walk one of them instead of going by id.
    return _among(table, dialect), table.c.claim_id == _a_claim(table)


def _among(table: Table, dialect: str) -> Any:
    if dialect == "postgresql":  # one parameter, however many they are: the statement's text stays the same
        return table.c.id == any_(cast(bindparam("ids", type_=String()), ARRAY(Uuid())))
    return table.c.id.in_(bindparam("ids", expanding=True))


def _due(table: Table, shape: Shape) -> tuple[Any, ...]:
    return queries.due(
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
    return select(func.set_config(name, bindparam("a_limit"), literal_column("true"))).scalar_subquery()
