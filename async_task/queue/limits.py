"""Claiming from a limited queue. Its row is the turnstile: who has it locked counts what is in hand, takes as many as
are allowed, and commits. A limit is never a filter of the claim: what it holds back costs nobody a walk."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Engine, Table, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from async_task.database.clock import clock_now
from async_task.database.transactions import transaction_on
from async_task.queue import predicates
from async_task.queue.claim import Claim, ClaimRequest
from async_task.queue.fetch import claim_due
from async_task.schema.states import is_pending, releasing_to_queue
from async_task.schema.tables import companion_tables
from async_task.targets.policies import Limit


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
        turn = _turn(connection, table, request.queue, own)
        if turn is None:
            connection.execute(_first(table, request.queue))
            turn = _turn(connection, table, request.queue, own)
        assert turn is not None
        return _claim(connection, table, turn, request)


def _turn(connection: Connection, table: Table, queue: str, own: Limit | None) -> Any:
    """The queue's row, locked: nobody else claims from it until this transaction ends."""
    queues = companion_tables(table).queues
    columns: Any = select(queues, clock_now().label("now"))
    row = connection.execute(columns.where(queues.c.name == queue).with_for_update(of=queues)).first()
    if row is not None and own is not None and (row.max_running, row.rate) != (own.max_running, own.rate):
        values = {"max_running": own.max_running, "rate": own.rate, "burst": own.burst, "tokens": None}
        connection.execute(update(queues).where(queues.c.name == queue).values(values))
        return connection.execute(columns.where(queues.c.name == queue)).first()
    return row


def _first(table: Table, queue: str) -> Any:
    return insert(companion_tables(table).queues).values(name=queue)


def _claim(
    connection: Connection, table: Table, row: Any, request: ClaimRequest
) -> tuple[list[Claim], dt.timedelta | None]:
    if row.paused_at is not None:
        return [], PAUSE
    # Since the lock was had: what stands in the row was read by the statement that waited for it.
    now = connection.scalar(select(clock_now()))
    assert now is not None
    since = now - (row.refilled_at or now)
    allowed = allowance(
        Limit(row.max_running, row.rate), running=_running(connection, table, row.name), tokens=row.tokens, since=since
    )
    number = request.limit if allowed.number is None else min(request.limit, allowed.number)
    claims = claim_due(connection, table, replace(request, limit=number)) if number else []
    if allowed.tokens is not None:
        left = {"tokens": allowed.tokens - len(claims), "refilled_at": now}
        queues = companion_tables(table).queues
        connection.execute(update(queues).where(queues.c.name == row.name).values(left))
    return claims, allowed.after if len(claims) == number < request.limit else None


def _running(connection: Connection, table: Table, queue: str) -> int:
    """How many of a queue are in hand; found in the index of live claims."""
    live = (is_pending(table), table.c.claim_id.is_not(None), table.c.lease_until.is_not(None))
    return connection.scalar(select(func.count()).select_from(table).where(*live, table.c.queue == queue)) or 0


@dataclass(frozen=True, slots=True)
class QueueState:
    """A queue that is paused or limited. `paused_at`: since when, None when it is not paused; `paused_by` and `reason`
    as they were said. `max_running`: calls at a time; `rate`: starts in a second; None without such a limit."""

    name: str
    paused_at: dt.datetime | None
    paused_by: str | None
    reason: str | None
    max_running: int | None
    rate: float | None


def pause(engine: Engine, table: Table, queue: str, *, by: str | None, reason: str | None) -> bool:
    """From now on nothing is claimed from it; what is being performed goes on. False when it was paused before, which
    then stands as it was."""
    try:
        return _pause(engine, table, queue, by, reason)
    except IntegrityError:  # somebody else wrote its row down at the same time
        return _pause(engine, table, queue, by, reason)


def resume(engine: Engine, table: Table, queue: str) -> bool:
    """False when it was not paused."""
    queues = companion_tables(table).queues
    paused = (queues.c.name == queue, queues.c.paused_at.is_not(None))
    with engine.begin() as connection:
        nothing = {"paused_at": None, "paused_by": None, "pause_reason": None}
        resumed = connection.execute(update(queues).where(*paused).values(nothing))
        unlimited = (queues.c.max_running.is_(None), queues.c.rate.is_(None), queues.c.paused_at.is_(None))
        connection.execute(delete(queues).where(queues.c.name == queue, *unlimited))
        return resumed.rowcount == 1


def states(engine: Engine, table: Table) -> list[QueueState]:
    """All queues that are paused or limited, by name."""
    c = companion_tables(table).queues.c
    columns: Any = select(c.name, c.paused_at, c.paused_by, c.pause_reason, c.max_running, c.rate)
    with engine.begin() as connection:
        return [QueueState(*row) for row in connection.execute(columns.order_by(c.name)).all()]


def paused(engine: Engine, table: Table) -> frozenset[str]:
    """The names of the queues that are paused."""
    return frozenset(one.name for one in states(engine, table) if one.paused_at is not None)


def release_to_own_queue(engine: Engine, table: Table, claims: Sequence[Claim], lane: str) -> int:
    """Give claims back that nobody has started, uncharged, into the queue `lane`. Answers how many."""
    mine = (table.c.id.in_([one.id for one in claims]), table.c.claim_id.in_({one.claim_id for one in claims}))
    with engine.begin() as connection:
        change = predicates.changed(table, releasing_to_queue(table, lane)).where(*mine, is_pending(table))
        return connection.execute(change).rowcount


def _pause(engine: Engine, table: Table, queue: str, by: str | None, reason: str | None) -> bool:
    queues = companion_tables(table).queues
    said = {"paused_at": clock_now(), "paused_by": by, "pause_reason": reason}
    with engine.begin() as connection:
        row = connection.execute(select(queues.c.paused_at).where(queues.c.name == queue).with_for_update()).first()
        if row is None:
            connection.execute(insert(queues).values(name=queue, **said))
        elif row.paused_at is None:
            connection.execute(update(queues).where(queues.c.name == queue).values(said))
        return row is None or row.paused_at is None


PAUSE = dt.timedelta(seconds=1)
"""When to look again where only the end of a call, or a person, can change the answer."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """`number` may be started now (None: as many as there are); `tokens` is what the rate has saved up by now; more may
    be allowed `after` so long."""

    number: int | None
    tokens: float | None
    after: dt.timedelta


def allowance(limit: Limit, *, running: int, tokens: float | None, since: dt.timedelta) -> Allowance:
    """What a limit allows while so many are `running`, when there were so many `tokens` (None: never asked before) so
    long ago."""
    free = None if limit.max_running is None else max(0, limit.max_running - running)
    if limit.rate is None or limit.burst is None:
        return Allowance(free, None, PAUSE)
    saved = limit.burst if tokens is None else tokens + max(0.0, since.total_seconds()) * limit.rate
    saved = min(float(limit.burst), saved)
    number = int(saved) if free is None else min(free, int(saved))
    next_token = dt.timedelta(seconds=max(0.001, (1 - saved % 1) / limit.rate))
    return Allowance(number, saved, PAUSE if free == 0 else next_token)
