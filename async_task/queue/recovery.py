"""Recovery: a claim whose process has died is released where it stood, and charged.

1. A process that performed nothing else: a crash is counted, and at CRASH_LIMIT crashes in a row the attempt fails.
2. Any other process: a loss is counted, which ends no attempt, since others were performed there, or a person or the
   system has killed it. The attempt is performed in the quarantine next, where the blame is exact.
3. Where the ledger of the process can be read, only those are charged whose calls were running.
"""

import datetime as dt
import time
import uuid
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Table, select

from async_task.database.dialects import locks_rows, server_uptime
from async_task.queue import ledger, workers
from async_task.queue.claim import Claim
from async_task.queue.ledger import Begun
from async_task.queue.ordering import release_in
from async_task.queue.pages import PAGE, refusing
from async_task.queue.predicates import is_claimed, is_orphan, without
from async_task.queue.settle_statements import change, change_one
from async_task.queue.workers import Process
from async_task.schema.audit import record
from async_task.schema.states import Status, is_pending, losing, recovering, releasing_started, releasing_unstarted
from async_task.wakeup import notify

CRASH_LIMIT = 3
SILENT = "its worker lives and could not reach the database"


def recover_orphans(
    engine: Engine, table: Table, lease: dt.timedelta, *, limit: int = PAGE, besides: Sequence[uuid.UUID] = ()
) -> int:
    """Recover one page of orphans, without the ids `besides`. Returns how many. Raises Refused."""
    with engine.begin() as connection:
        uptime = server_uptime(connection)
        if uptime is not None and uptime < lease.total_seconds():
            return 0  # no worker could send a heartbeat while the server was down
        alive = workers.alive_here(connection, table)
        found = connection.execute(_orphans(table, lease, limit, besides, alive)).all()
        silent = {row.claimed_by for row in found if ledger.has_beaten(row.claimed_by, lease.total_seconds())}
        _recover(connection, table, found, "was lost", silent)
        return len(found)


def recover_claims_of(
    engine: Engine, table: Table, process: Process, *, limit: int = PAGE, besides: Sequence[uuid.UUID] = ()
) -> int:
    """The same for one page of the claims of a process that has died, whether their leases are past or not; sleeping
    workers are notified. Rows that the server still keeps locked for it are left out. Raises Refused."""
    with engine.begin() as connection:
        names = workers.names_of(connection, table, process)
        found = connection.execute(_claims_of(table, names, limit, besides)).all() if names else []
        _recover(connection, table, found, "has died")
        notify.notify_sleepers(connection, table, Counter(row.queue for row in found))
        return len(found)


def recover_claim(engine: Engine, table: Table, claim: Claim, how: str) -> Status | None:
    """Recover a claim that has killed a process of its own; `how` says what happened. Returns its new state, None when
    somebody else was first."""
    with engine.begin() as connection:
        values = recovering(table, CRASH_LIMIT, crash_reason(claim.num_crashes + 1, how))
        if connection.execute(change_one(table, claim, values)).rowcount != 1:
            return None
        record(connection, table, claim.id, "crash", how, number=claim.number)
        release_in(connection, table, [claim.order_key])
        return connection.scalar(select(table.c.status).where(table.c.id == claim.id))


def must_wait_for_heartbeats(engine: Engine, table: Table, lease: dt.timedelta) -> bool:
    """Whether there are orphans by a connection younger than a lease. After an outage all workers are silent, and this
    process cannot know whether they or the database were away; an older connection has seen the database meanwhile."""
    if not locks_rows(engine.dialect):
        return False
    with engine.begin() as connection:
        since = connection.info.setdefault("async_task.connected", time.monotonic())
        if time.monotonic() - since >= lease.total_seconds():
            return False
        return connection.execute(_orphans(table, lease, 1)).first() is not None


def crash_reason(crashes: int, how: str) -> str:
    """The `last_error` of an attempt that failed at the crash limit."""
    return f"crashed: {crashes} starts in a row killed a process of their own; at the last, {how}"


def _recover(
    connection: Connection, table: Table, found: Sequence[Any], happened: str, silent: Collection[str] = ()
) -> None:
    """Recover these rows, which are locked. Workers that are `silent` live, and cannot reach the database: nothing of
    theirs is charged; nor what a stop has left behind."""
    stopped = workers.stopped_among(connection, table, {row.claimed_by for row in found})
    begun = {name: ledger.read(name) for name in {row.claimed_by for row in found}}
    with refusing([row.id for row in found]):
        for row in found:
            how = f"the process {row.claimed_by} {happened}"
            _change(
                connection, table, row, begun[row.claimed_by], how,
                is_silent=row.claimed_by in silent, is_stopped=row.claimed_by in stopped,
            )  # fmt: skip
    release_in(connection, table, [row.order_key for row in found])


def _change(
    connection: Connection, table: Table, row: Any, begun: Begun | None, how: str, *, is_silent: bool, is_stopped: bool
) -> None:
    """Release one row. It is charged if its call was running when its process ended; or, as far as its ledger does not
    say, may have been."""
    if begun is not None and row.id not in begun.running | begun.returned:
        values, kind, message = releasing_unstarted(table), None, how
    elif is_stopped:
        message = f"the worker {row.claimed_by} was stopped, and could not release it"
        values, kind = releasing_started(message), "parked"
    elif is_silent or (begun is not None and row.id in begun.returned):
        message = f"{SILENT}: {row.claimed_by}" if is_silent else f"{how} before its outcome was written"
        values, kind = releasing_started(message), "parked"
    else:
        values, kind, message = losing(table), "loss", how
    connection.execute(change(table, values).where(table.c.id == row.id, is_pending(table)))
    if kind is not None:
        record(connection, table, row.id, kind, message, number=row.num_attempts)


def _orphans(
    table: Table, lease: dt.timedelta, limit: int, besides: Sequence[uuid.UUID] = (), alive: Sequence[str] = ()
) -> Any:
    """Orphans, locked; without the ids `besides`, and without claims of the workers `alive`."""
    conditions = (*is_orphan(table, lease), *without(table.c.id, besides), *without(table.c.claimed_by, alive))
    c = table.c
    return _locked(table, select(c.id, c.claimed_by, c.num_attempts, c.order_key), conditions, limit)


def _claims_of(table: Table, names: Sequence[str], limit: int, besides: Sequence[uuid.UUID]) -> Any:
    """Claims of the workers with these `names`, locked; without the ids `besides`."""
    c = table.c
    conditions = (*is_claimed(table), c.claimed_by.in_(names), *without(c.id, besides))
    found: Any = select(c.id, c.claimed_by, c.num_attempts, c.order_key, c.queue)
    return _locked(table, found, conditions, limit)


def _locked(table: Table, found: Any, conditions: Sequence[Any], limit: int) -> Any:
    in_order = found.where(*conditions).order_by(table.c.lease_until, table.c.id).limit(limit)
    return in_order.with_for_update(skip_locked=True, key_share=True)
