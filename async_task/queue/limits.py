"""Claiming from a limited queue. Its row is the turnstile: who has it locked counts what is in hand, takes as many as
are allowed, and commits. A limit is never a filter of the claim: what it holds back costs nobody a walk."""

import datetime as dt
import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Table, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from async_task.database.clock import written
from async_task.queue.claim import Claim
from async_task.queue.fetch import claim_in
from async_task.schema.states import is_pending
from async_task.schema.tables import beside
from async_task.targets.rates import PAUSE, Limit, allowance


def limited(engine: Engine, table: Table) -> dict[str, Limit]:
    """The queues that have a limit in the database."""
    queues = beside(table).queues
    with engine.begin() as connection:
        rows = connection.execute(select(queues)).all()
    found = {row.name: Limit(row.max_running, row.rate) for row in rows}
    return {name: limit for name, limit in found.items() if limit}


def claim_limited(
    engine: Engine, table: Table, worker: str, lease: dt.timedelta, queue: str, limit: int, own: Limit | None = None,
    *, claim_id: uuid.UUID | None = None, began: dt.datetime | None = None, suspects: bool = False,
    targets: Sequence[str] = (), besides: Sequence[tuple[str, str]] = (),
) -> tuple[list[Claim], dt.timedelta | None]:  # fmt: skip
    """As `claiming.claim_due`, of a queue with a limit: `own`, that of the targets of this process, else the one in
    the database. Answers what was taken, and, where the limit held something back, when to come again."""
    for is_last in (False, True):
        try:
            with engine.begin() as connection:
                turn = _turn(connection, table, queue, own)
                if turn is None and not is_last:
                    connection.execute(_first(table, queue))
                    turn = _turn(connection, table, queue, own)
                assert turn is not None
                return _claim(
                    connection, table, turn, limit, worker, lease,
                    claim_id=claim_id, began=began, suspects=suspects, targets=targets, besides=besides,
                )  # fmt: skip
        except IntegrityError:  # somebody else wrote the row down at the same time
            if is_last:
                raise
    raise AssertionError("unreachable")


def _turn(connection: Connection, table: Table, queue: str, own: Limit | None) -> Any:
    """The queue's row, locked: nobody else claims from it until this transaction ends."""
    queues = beside(table).queues
    columns: Any = select(queues, written().label("now"))
    row = connection.execute(columns.where(queues.c.name == queue).with_for_update(of=queues)).first()
    if row is not None and own is not None and (row.max_running, row.rate) != (own.max_running, own.rate):
        values = {"max_running": own.max_running, "rate": own.rate, "burst": own.burst, "tokens": None}
        connection.execute(update(queues).where(queues.c.name == queue).values(values))
        return connection.execute(columns.where(queues.c.name == queue)).first()
    return row


def _first(table: Table, queue: str) -> Any:
    return insert(beside(table).queues).values(name=queue)


def _claim(
    connection: Connection, table: Table, row: Any, limit: int, worker: str, lease: dt.timedelta, **options: Any
) -> tuple[list[Claim], dt.timedelta | None]:
    if row.paused_at is not None:
        return [], PAUSE
    # Since the lock was had: what stands in the row was read by the statement that waited for it.
    now = connection.scalar(select(written()))
    assert now is not None
    since = now - (row.refilled_at or now)
    allowed = allowance(
        Limit(row.max_running, row.rate), running=_running(connection, table, row.name), tokens=row.tokens, since=since
    )
    number = limit if allowed.number is None else min(limit, allowed.number)
    claims = claim_in(connection, table, worker, lease, row.name, number, **options) if number else []
    if allowed.tokens is not None:
        left = {"tokens": allowed.tokens - len(claims), "refilled_at": now}
        queues = beside(table).queues
        connection.execute(update(queues).where(queues.c.name == row.name).values(left))
    return claims, allowed.after if len(claims) == number < limit else None


def _running(connection: Connection, table: Table, queue: str) -> int:
    """How many of a queue are in hand; found in the index of live claims."""
    live = (is_pending(table), table.c.claim_id.is_not(None), table.c.lease_until.is_not(None))
    return connection.scalar(select(func.count()).select_from(table).where(*live, table.c.queue == queue)) or 0
