"""Claiming from a queue with a limit. A limit is a locked row, and no condition of the claim, which would walk over
what the limit holds back.

1. Lock the queue's row: claims of one limited queue are made one after the other.
2. Count what is running, and what the rate allows by now.
3. Claim that many, and commit.
"""

import datetime as dt
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Engine, Table, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from async_task.database.clock import clock_now
from async_task.database.transactions import transaction_on
from async_task.queue.claim import Claim, ClaimRequest
from async_task.queue.fetch import claim_due
from async_task.schema.states import is_pending
from async_task.schema.tables import companion_tables
from async_task.targets.policies import Limit

PAUSE = dt.timedelta(seconds=1)
"""Until the next claim, where only the end of a call, or a person, can change the answer."""


def limited(engine: Engine, table: Table) -> dict[str, Limit]:
    """The queues that have a limit in the database."""
    queues = companion_tables(table).queues
    with engine.begin() as connection:
        rows = connection.execute(select(queues)).all()
    found = {row.name: Limit(row.max_running, row.rate) for row in rows}
    return {name: limit for name, limit in found.items() if limit}


def claim_limited(
    where: Engine | Connection, table: Table, request: ClaimRequest, own: Limit | None
) -> tuple[list[Claim], dt.timedelta | None]:
    """As `fetch.claim_due`, from a queue with a limit: `own` (that of this process's targets), or else the one in the
    database. Returns the claims and, where the limit held something back, how long to wait before the next claim."""
    try:
        return _claim_in_turn(where, table, request, own)
    except IntegrityError:  # another process wrote the queue's row at the same time
        return _claim_in_turn(where, table, request, own)


def _claim_in_turn(
    where: Engine | Connection, table: Table, request: ClaimRequest, own: Limit | None
) -> tuple[list[Claim], dt.timedelta | None]:
    with transaction_on(where) as connection:
        row = _lock_queue(connection, table, request.queue, own)
        if row is None:
            connection.execute(insert(companion_tables(table).queues).values(name=request.queue))
            row = _lock_queue(connection, table, request.queue, own)
        return ([], PAUSE) if row.paused_at is not None else _claim(connection, table, row, request)


def _lock_queue(connection: Connection, table: Table, queue: str, own: Limit | None) -> Any:
    """The queue's row, locked, with the limit of this process's targets; None if there is no row."""
    queues = companion_tables(table).queues
    found: Any = select(queues, clock_now().label("now")).where(queues.c.name == queue)
    row = connection.execute(found.with_for_update(of=queues)).first()
    if row is None or own is None or (row.max_running, row.rate) == (own.max_running, own.rate):
        return row
    values = {"max_running": own.max_running, "rate": own.rate, "burst": own.burst, "tokens": None}
    connection.execute(update(queues).where(queues.c.name == queue).values(values))
    return connection.execute(found).first()


def _claim(
    connection: Connection, table: Table, row: Any, request: ClaimRequest
) -> tuple[list[Claim], dt.timedelta | None]:
    # Asked anew: the row's own `now` is that of the statement that waited for the lock.
    now = connection.scalar(select(clock_now()))
    assert now is not None
    allowed = allowance(
        Limit(row.max_running, row.rate),
        running=_num_running(connection, table, row.name),
        tokens=row.tokens,
        since=now - (row.refilled_at or now),
    )
    number = request.limit if allowed.number is None else min(request.limit, allowed.number)
    claims = claim_due(connection, table, replace(request, limit=number)) if number else []
    if allowed.tokens is not None:
        left = {"tokens": allowed.tokens - len(claims), "refilled_at": now}
        queues = companion_tables(table).queues
        connection.execute(update(queues).where(queues.c.name == row.name).values(left))
    return claims, allowed.after if len(claims) == number < request.limit else None


def _num_running(connection: Connection, table: Table, queue: str) -> int:
    """How many attempts of a queue are claimed; found in the index of live claims."""
    live = (is_pending(table), table.c.claim_id.is_not(None), table.c.lease_until.is_not(None))
    return connection.scalar(select(func.count()).select_from(table).where(*live, table.c.queue == queue)) or 0


@dataclass(frozen=True, slots=True)
class Allowance:
    """`number` may be started now (None: no maximum). `tokens`: what the rate has saved up by now. `after`: how long
    until more may be allowed."""

    number: int | None
    tokens: float | None
    after: dt.timedelta


def allowance(limit: Limit, *, running: int, tokens: float | None, since: dt.timedelta) -> Allowance:
    """What a limit allows while N attempts are `running`, when `since` ago there were N `tokens` (None: the first
    claim)."""
    free = None if limit.max_running is None else max(0, limit.max_running - running)
    if limit.rate is None or limit.burst is None:
        return Allowance(free, None, PAUSE)
    saved = limit.burst if tokens is None else tokens + max(0.0, since.total_seconds()) * limit.rate
    saved = min(float(limit.burst), saved)
    number = int(saved) if free is None else min(free, int(saved))
    next_token = dt.timedelta(seconds=max(0.001, (1 - saved % 1) / limit.rate))
    return Allowance(number, saved, PAUSE if free == 0 else next_token)
