"""Conditions on the rows of an attempts table, as SQLAlchemy expressions; those on a row's state are in `states`."""

import datetime as dt
import uuid
from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

from sqlalchemy import BindParameter, ColumnElement, ScalarSelect, Table, func, literal, or_, select

from async_task.database.clock import statement_now
from async_task.schema.states import ONE, is_no_suspect, is_overdue, is_pending, is_suspect, is_waiting
from async_task.schema.tables import companion_tables

PRIORITIES = range(10)
T = TypeVar("T")
Given: TypeAlias = T | BindParameter[Any]
"""A value, or the parameter by which the value is sent."""
Conditions: TypeAlias = tuple[ColumnElement[bool], ...]


def is_mine(table: Table, attempt_id: uuid.UUID, claim_id: uuid.UUID) -> Conditions:
    """The fence: this attempt, still pending, still under this claim."""
    return table.c.id == attempt_id, table.c.claim_id == claim_id, is_pending(table)


def due(
    table: Table,
    *,
    began: Given[dt.datetime] | None = None,
    suspects: bool | None = None,
    targets: Given[Sequence[str]] = (),
    left_out: Conditions = (),
) -> Conditions:
    """Waiting, due and not overdue. `suspects`: only suspects, none, or (None) both. `targets`: only these; if empty,
    any. `left_out`: the conditions that leave something out.

    `began`: due at that instant, created by then, and not started since by any worker. Without this a batch would not
    end: a poll without delay, or a target that creates rows for the past, would keep it running.
    """
    since: Any = statement_now() if began is None else _as_instant(table, began)
    once = () if began is None else (table.c.created_at <= since, func.coalesce(table.c.attempted_at, since) <= since)
    wanted = (table.c.target.in_(targets),) if _is_given(targets) else ()
    chosen = (*_suspects(table, suspects), *wanted, *left_out)
    return (*is_waiting(table), table.c.due_at <= since, ~is_overdue(table), *chosen, *once)


def _as_instant(table: Table, began: Any) -> Any:
    return began if isinstance(began, BindParameter) else literal(began, table.c.due_at.type)


def _is_given(names: Any) -> bool:
    return isinstance(names, BindParameter) or bool(names)


def _suspects(table: Table, suspects: bool | None) -> Conditions:
    if suspects is None:
        return ()
    return (is_suspect(table) if suspects else is_no_suspect(table),)


def has_rows(table: Table, queue: Any, conditions: Conditions) -> list[ColumnElement[bool]]:
    """For each priority of `queue`: whether any row meets the conditions."""
    return [nearest(table, queue, number, conditions).is_not(None) for number in PRIORITIES]


def nearest(table: Table, queue: Any, priority: Any, conditions: Conditions) -> ScalarSelect[Any]:
    """The id of the nearest row of this priority of `queue` that meets the conditions, as a claim looks for it; null if
    none does."""
    # With EXISTS, PostgreSQL walks the table instead of the index, and compiles a plan of a million points for a
    # second.
    place = (table.c.queue == queue, table.c.priority == priority)
    found = select(table.c.id).where(*place, *conditions).order_by(table.c.due_at, table.c.id).limit(ONE)
    return found.scalar_subquery()


def can_expire(table: Table) -> Conditions:
    """Past its `expires_at`, and not claimed."""
    return is_pending(table), table.c.claim_id.is_(None), is_overdue(table)


def is_orphan(table: Table, lease: dt.timedelta) -> Conditions:
    """Claimed, with a lease in the past, by a worker without a heartbeat within one `lease`. A locked row may meet
    these and is no orphan: its worker lives."""
    return *_is_past_lease(table), _is_of_silent_worker(table, lease)


def is_lost_or_orphan(table: Table, lease: dt.timedelta, worker: Given[str]) -> Conditions:
    """A lost claim of this worker, or an orphan."""
    # Together: while an old snapshot is open, the index of leases is long, and all of it before now is walked.
    return *_is_past_lease(table), or_(table.c.claimed_by == worker, _is_of_silent_worker(table, lease))


def _is_past_lease(table: Table) -> Conditions:
    return is_pending(table), table.c.claim_id.is_not(None), table.c.lease_until <= statement_now()


def _is_of_silent_worker(table: Table, lease: dt.timedelta) -> ColumnElement[bool]:
    workers = companion_tables(table).workers
    beating = select(workers.c.name).where(workers.c.name == table.c.claimed_by, has_beaten(table, lease))
    return ~beating.exists()


def has_beaten(table: Table, lease: dt.timedelta) -> ColumnElement[bool]:
    """Whether a worker's last heartbeat is within one `lease`."""
    return companion_tables(table).workers.c.beat_at > statement_now(-lease.total_seconds(), is_text=True)


def is_lost_claim(table: Table, worker: Given[str]) -> Conditions:
    """Claimed by this worker, with a lease in the past."""
    return *_is_past_lease(table), table.c.claimed_by == worker


def has_claim(table: Table) -> ColumnElement[bool]:
    """Whether a worker, of the enclosing statement, has a claim."""
    workers = companion_tables(table).workers
    return select(table.c.id).where(*is_claimed(table), table.c.claimed_by == workers.c.name).exists()


def is_claimed(table: Table) -> Conditions:
    """Claimed; said of both columns, so that the index of live claims serves: on PostgreSQL it is of the rows with a
    `claim_id`, and on MySQL it begins with `lease_until`."""
    return is_pending(table), table.c.claim_id.is_not(None), table.c.lease_until.is_not(None)


def without(column: ColumnElement[Any], values: Sequence[Any]) -> Conditions:
    """The column is none of `values`; no condition if there are none."""
    return (column.not_in(values),) if values else ()
