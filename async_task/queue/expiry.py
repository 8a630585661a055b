"""Expiring: attempts past their `expires_at` that are not claimed come to rest as `expired`."""

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Select, Table, insert, select, update

from async_task.queue.final_failures import COLUMNS, FinalFailure
from async_task.queue.ordering import Silent, release_and_notify
from async_task.queue.pages import PAGE, refusing
from async_task.queue.predicates import can_expire, without
from async_task.schema.audit import event, record
from async_task.schema.states import Status, Values, ending, is_pending
from async_task.schema.tables import companion_tables

REASON = "past its expires_at"


def expire_overdue(
    engine: Engine, table: Table, *, limit: int = PAGE, besides: Sequence[uuid.UUID] = (), silent: Silent = ()
) -> list[FinalFailure]:
    """Expire one page, without the ids `besides`; returns what expired. `silent`: as for `release_arrived`. Raises
    Refused."""
    with engine.begin() as connection:
        found = connection.execute(overdue(table, limit, besides)).all()
        ids = [row.id for row in found]
        with refusing(ids):
            if ids:
                change = update(table).where(table.c.id.in_(ids), is_pending(table)).values(_expired(table))
                connection.execute(change)
                events = [event(table, one, "expired", REASON) for one in ids]
                connection.execute(insert(companion_tables(table).events), events)
        if keys := connection.scalars(_keys_of(table, ids)).all() if ids else ():
            release_and_notify(connection, table, keys, silent=silent)
        return [FinalFailure.of_row(row, Status.EXPIRED, REASON) for row in found]


def expire_one(connection: Connection, table: Table, attempt_id: uuid.UUID) -> FinalFailure | None:
    """Expire this attempt, in the caller's transaction; None if its row is locked."""
    unclaimed = (table.c.id == attempt_id, is_pending(table), table.c.claim_id.is_(None))
    asked = select(*_reported(table)).where(table.c.id == attempt_id, *can_expire(table))
    row = connection.execute(asked.with_for_update(skip_locked=True, key_share=True)).first()
    if row is None:
        return None
    connection.execute(update(table).where(*unclaimed).values(_expired(table)))
    record(connection, table, attempt_id, "expired", REASON)
    release_and_notify(connection, table, connection.scalars(_keys_of(table, [attempt_id])))
    return FinalFailure.of_row(row, Status.EXPIRED, REASON)


def overdue(table: Table, limit: int, besides: Sequence[uuid.UUID] = ()) -> Select[Any]:
    """What is to expire and is not locked, locked: the first `limit` of these, without the ids `besides`."""
    asked: Any = select(*_reported(table), table.c.expires_at)
    found: Select[Any] = (
        asked.where(*can_expire(table), *without(table.c.id, besides))
        .order_by(table.c.expires_at, table.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True, key_share=True)
    )
    return found


def _reported(table: Table) -> list[Any]:
    return [table.c[name] for name in COLUMNS]


def _expired(table: Table) -> Values:
    return ending(table, Status.EXPIRED, last_error=table.c.last_error, unreported=True)


def _keys_of(table: Table, ids: Sequence[uuid.UUID]) -> Select[Any]:
    return select(table.c.order_key).where(table.c.id.in_(ids), table.c.order_key.is_not(None)).distinct()
