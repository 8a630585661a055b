"""The fenced statements about claims. Those about many claims of one claim id are built once for each table, and take
`ids` and `a_claim`; `form`: how `ids` are given."""

import datetime as dt
import enum
import uuid
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    Dialect,
    Select,
    String,
    Table,
    Update,
    Uuid,
    any_,
    bindparam,
    cast,
    func,
    literal_column,
    null,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from async_task.database.clock import statement_now
from async_task.database.dialects import by_primary_key, takes_arrays
from async_task.queue import predicates
from async_task.queue.claim import Claim
from async_task.schema.states import Status, Values, ending, extending, is_overdue, releasing_unstarted

Statement = Any
"""A select of several columns, whose type SQLAlchemy 2.0 and 2.1 spell differently."""


class Ids(enum.Enum):
    """How the ids of a statement are given."""

    ONE = "one id"
    ARRAY = "an array in one parameter"
    LIST = "a parameter for each"

    @classmethod
    def of(cls, dialect: Dialect, number: int) -> "Ids":
        """The form for so many ids."""
        # PostgreSQL keeps the plan of `id = $1`. For a short array it plans anew at each execution: half of the
        # server's time for a commit with one outcome.
        if number == 1:
            return cls.ONE
        return cls.ARRAY if takes_arrays(dialect) else cls.LIST


@lru_cache(maxsize=64)
def lock(table: Table, form: Ids, *, waits: bool = True) -> Select[Any]:
    """Lock those of `ids` that are still ours under `a_claim`, and return them. Unless it `waits`, without those that
    somebody else has locked."""
    found = select(table.c.id).where(*_ours(table, form)).with_for_update(key_share=True, skip_locked=not waits)
    return by_primary_key(table, found)


@lru_cache(maxsize=64)
def lock_and_count(table: Table, form: Ids, *, is_bounded: bool, waits: bool = True) -> Statement:
    """The same; one row, which begins with the number of rows locked (PostgreSQL). The server ends the transaction when
    it idles, or a statement of it runs, for longer than `a_limit` milliseconds; and if it `is_bounded`, when it lasts
    for longer than `a_longest`."""
    # Reading 500 ids back was 13 % of a worker's CPU.
    limits = [_set_limit("idle_in_transaction_session_timeout"), _set_limit("statement_timeout")]
    if is_bounded:
        limits.append(_set_limit("transaction_timeout", "a_longest"))
    return select(func.count(), *limits).select_from(lock(table, form, waits=waits).subquery("locked"))


@lru_cache(maxsize=64)
def ours(table: Table, form: Ids) -> Select[Any]:
    """Those of `ids` that are still ours under `a_claim`."""
    return select(table.c.id).where(*_ours(table, form))


@lru_cache(maxsize=64)
def succeed(table: Table, form: Ids) -> Update:
    """Write `succeeded` on those of `ids` that are still ours under `a_claim`."""
    return _change_ours(table, form, _as_literals(ending(table, Status.SUCCEEDED, last_error=None)))


@lru_cache(maxsize=64)
def succeed_or_fail(table: Table) -> Statement:
    """The same for one of `ids`, in a statement that fails with NO_ROW if that is no longer ours (PostgreSQL). So what
    follows in the same round trip, a COMMIT perhaps, is not executed."""
    done = succeed(table, Ids.ONE).returning(literal_column("1").label("one")).cte("done")
    return select(literal_column("1 / count(*)").label("number")).select_from(done)


NO_ROW = "22012"
"""The SQLSTATE of a division by zero."""


@lru_cache(maxsize=64)
def release(table: Table, form: Ids) -> Update:
    """Release those of `ids` that are still ours under `a_claim` and were not started."""
    return _change_ours(table, form, releasing_unstarted(table))


@lru_cache(maxsize=64)
def extend(table: Table, form: Ids, lease: dt.timedelta) -> Update:
    """Extend the lease of those of `ids` that are still ours under `a_claim`."""
    return _change_ours(table, form, extending(lease))


def lock_one(table: Table, claim: Claim) -> Select[Any]:
    """The row of this claim, locked; nothing if it is locked or no longer ours."""
    mine = predicates.is_mine(table, claim.id, claim.claim_id)
    return select(table.c.id).where(*mine).with_for_update(key_share=True, skip_locked=True)


def change_one(table: Table, claim: Claim, values: Values) -> Update:
    """The fenced write: changes one row, or none when somebody else was first."""
    return change(table, values).where(*predicates.is_mine(table, claim.id, claim.claim_id))


def change(table: Table, values: Values) -> Update:
    """Columns are set in the order of `values`: MySQL reads in later ones what it has set in earlier ones."""
    return update(table).ordered_values(*values.items())


def state(table: Table, attempt_id: uuid.UUID) -> Statement:
    """The state of one attempt, and whether it is due or overdue by the database's clock."""
    return select(
        table.c.status, table.c.claim_id, table.c.claimed_by, table.c.attempted_at, table.c.num_attempts,
        table.c.due_at, (table.c.due_at <= statement_now()).label("is_due"), is_overdue(table).label("is_overdue"),
        table.c.order_key, table.c.released,
    ).where(table.c.id == attempt_id)  # fmt: skip


def _change_ours(table: Table, form: Ids, values: Any) -> Update:
    return by_primary_key(table, change(table, values).where(*_ours(table, form)))


def _ours(table: Table, form: Ids) -> tuple[Any, ...]:
    # No condition on the state: a constraint keeps that only pending rows are claimed. With the conditions of partial
    # indexes the planner walks one of those instead of going by id (80 ms instead of 1.4).
    return _among(table, form), table.c.claim_id == bindparam("a_claim", type_=table.c.claim_id.type)


def _among(table: Table, form: Ids) -> Any:
    if form is Ids.ONE:
        return table.c.id == bindparam("ids", type_=table.c.id.type)
    if form is Ids.ARRAY:  # one parameter however many ids: the statement's text stays the same
        return table.c.id == any_(cast(bindparam("ids", type_=String()), ARRAY(Uuid())))
    return table.c.id.in_(bindparam("ids", expanding=True))


def _as_literals(values: Values) -> Values:
    """Constants are written into the statement: each parameter costs 8 us to send."""
    return {name: _as_literal(value) for name, value in values.items()}


def _as_literal(value: Any) -> Any:
    match value:
        case None:
            return null()
        case Status():
            return literal_column(f"'{value.value}'")
        case int():
            return literal_column(str(value))
        case _:
            return value


def _set_limit(name: str, limit: str = "a_limit") -> Any:
    # In a subselect of its own it runs once, and not for each row.
    is_local: Any = literal_column("true")
    return select(func.set_config(literal_column(f"'{name}'"), bindparam(limit), is_local)).scalar_subquery()
