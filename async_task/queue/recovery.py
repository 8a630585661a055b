"""Recovery: a claim whose process has died is released where it stood, and charged.

1. A process that performed nothing else: a crash is counted, and at CRASH_LIMIT crashes in a row the attempt fails.
2. Any other process: a loss is counted, which ends no attempt, since others were performed there, or a person or the
   system has killed it. The attempt is performed in the quarantine next, where the blame is exact.
3. Where the ledger of the process can be read, only those are charged whose calls were running.

`lost_claims` and `claims_left_by` decide which claims are lost, and what becomes of each: for sweeps, for
supervisors, and for the preview of a sweep, which writes nothing.
"""

import datetime as dt
import time
import uuid
from collections import Counter
from collections.abc import Collection, Sequence
from enum import Enum
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, Table, select

from async_task.database.dialects import locks_rows
from async_task.database.server_sessions import server_uptime
from async_task.queue import ledger, workers
from async_task.queue.claim import Claim
from async_task.queue.fingerprints import fingerprint_of_loss
from async_task.queue.hooks import FACTS
from async_task.queue.ledger import Begun
from async_task.queue.ordering import release_and_notify
from async_task.queue.pages import PAGE, refusing
from async_task.queue.predicates import Conditions, is_claimed, is_orphan, without
from async_task.queue.settle_statements import change, change_one
from async_task.schema.audit import record
from async_task.schema.states import (
    Status,
    Values,
    is_overdue,
    is_pending,
    losing,
    recovering,
    releasing_started,
    releasing_unstarted,
)
from async_task.wakeup import notify

CRASH_LIMIT = 3
CRASHED = "crashed: "
"""How the `last_error` of an attempt begins that failed at the crash limit."""
SILENT = "its worker lives and could not reach the database"


class Fate(Enum):
    """What becomes of a claim that was lost; the value is the word of a preview."""

    RELEASED = "released"
    """Its call had not begun: uncharged, as if it had not been claimed."""
    PARKED = "parked"
    """Uncharged: its worker was stopped, or lives, or its call had returned."""
    LOST = "recovered"
    """Its call ran, or may have run: a loss is counted."""


class LostClaim(NamedTuple):
    """A claim of a worker that has lost it. `row`: with the columns of `_found`. `why`: a sentence about the worker."""

    row: Any
    fate: Fate
    why: str


def recover_orphans(
    engine: Engine, table: Table, lease: dt.timedelta, *, limit: int = PAGE, besides: Sequence[uuid.UUID] = ()
) -> list[LostClaim]:
    """Recover one page of orphans, without the ids `besides`. Returns what was recovered. Raises Refused."""
    with engine.begin() as connection:
        found = lost_claims(connection, table, lease, limit, besides=besides)
        _recover(connection, table, found)
    return found


def recover_claims_of(
    engine: Engine, table: Table, names: Sequence[str], *, limit: int = PAGE, besides: Sequence[uuid.UUID] = ()
) -> list[LostClaim]:
    """The same for one page of the claims of workers with these `names`, whose processes have died, whether their
    leases are past or not; sleeping workers are notified. Rows that the server still keeps locked for them are left
    out. Raises Refused."""
    with engine.begin() as connection:
        found = claims_left_by(connection, table, names, limit, besides=besides)
        _recover(connection, table, found)
        notify.notify_sleepers(connection, table, Counter(one.row.queue for one in found))
    return found


def lost_claims(
    connection: Connection, table: Table, lease: dt.timedelta, limit: int,
    *, besides: Sequence[uuid.UUID] = (), without_names: Sequence[str] = (),
) -> list[LostClaim]:  # fmt: skip
    """The orphans, locked, and what becomes of each; without the ids `besides`, and without claims of the workers
    `without_names`."""
    conditions = orphan_conditions(connection, table, lease, without_names)
    if conditions is None:
        return []
    found = connection.execute(_locked(table, (*conditions, *without(table.c.id, besides)), limit)).all()
    silent = {row.claimed_by for row in found if ledger.has_beaten(row.claimed_by, lease.total_seconds())}
    return _decided(connection, table, found, "was lost", silent)


def claims_left_by(
    connection: Connection, table: Table, names: Sequence[str], limit: int, *, besides: Sequence[uuid.UUID] = ()
) -> list[LostClaim]:
    """The claims of workers with these names, whose process has died, locked, and what becomes of each; without the ids
    `besides`."""
    if not names:
        return []
    conditions = (*left_conditions(table, names), *without(table.c.id, besides))
    return _decided(connection, table, connection.execute(_locked(table, conditions, limit)).all(), "has died")


def orphan_conditions(
    connection: Connection, table: Table, lease: dt.timedelta, without_names: Sequence[str] = ()
) -> Conditions | None:
    """Of the rows of orphans, without claims of the workers `without_names`; None while nothing can be said of any."""
    uptime = server_uptime(connection)
    if uptime is not None and uptime < lease.total_seconds():
        return None  # no worker could send a heartbeat while the server was down
    others = [*workers.alive_here(connection, table), *without_names]
    return *is_orphan(table, lease), *without(table.c.claimed_by, others)


def left_conditions(table: Table, names: Sequence[str]) -> Conditions:
    """Of the claims of these workers."""
    return *is_claimed(table), table.c.claimed_by.in_(names)


def recover_claim(engine: Engine, table: Table, claim: Claim, how: str) -> Status | None:
    """Recover a claim that has killed a process of its own; `how` says what happened. Returns its new state, None when
    somebody else was first."""
    with engine.begin() as connection:
        values = recovering(table, CRASH_LIMIT, crash_reason(claim.num_crashes + 1, how))
        if connection.execute(change_one(table, claim, values)).rowcount != 1:
            return None
        alike = fingerprint_of_loss(claim.target, "crash", how)
        record(connection, table, claim.id, "crash", how, number=claim.number, fingerprint=alike)
        release_and_notify(connection, table, [claim.order_key])
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
        return connection.execute(_locked(table, is_orphan(table, lease), 1)).first() is not None


def crash_reason(crashes: int, how: str) -> str:
    """The `last_error` of an attempt that failed at the crash limit."""
    return f"{CRASHED}{crashes} starts in a row killed a process of their own; at the last, {how}"


def _decided(
    connection: Connection, table: Table, found: Sequence[Any], happened: str, silent: Collection[str] = ()
) -> list[LostClaim]:
    """What becomes of these rows. Workers that are `silent` live, and cannot reach the database: nothing of theirs is
    charged; nor what a stop has left behind."""
    names = {row.claimed_by for row in found}
    stopped = workers.stopped_among(connection, table, names)
    begun = {name: ledger.read(name) for name in names}
    return [
        _fate(row, begun[row.claimed_by], happened, row.claimed_by in silent, row.claimed_by in stopped)
        for row in found
    ]


def _fate(row: Any, begun: Begun | None, happened: str, is_silent: bool, is_stopped: bool) -> LostClaim:
    """It is charged if its call was running when its process ended; or, as far as its ledger does not say, may have
    been."""
    how = f"the process {row.claimed_by} {happened}"
    if begun is not None and row.id not in begun.running | begun.returned:
        return LostClaim(row, Fate.RELEASED, how)
    if is_stopped:
        return LostClaim(row, Fate.PARKED, f"the worker {row.claimed_by} was stopped, and could not release it")
    if is_silent:
        return LostClaim(row, Fate.PARKED, f"{SILENT}: {row.claimed_by}")
    if begun is not None and row.id in begun.returned:
        return LostClaim(row, Fate.PARKED, f"{how} before its outcome was written")
    return LostClaim(row, Fate.LOST, how)


def _recover(connection: Connection, table: Table, lost: Sequence[LostClaim]) -> None:
    """Recover these rows, which are locked."""
    with refusing([one.row.id for one in lost]):
        for one in lost:
            _change(connection, table, one)
    release_and_notify(connection, table, [one.row.order_key for one in lost])


def _change(connection: Connection, table: Table, lost: LostClaim) -> None:
    row, fate, why = lost
    values: Values = {
        Fate.RELEASED: lambda: releasing_unstarted(table),
        Fate.PARKED: lambda: releasing_started(why),
        Fate.LOST: lambda: losing(table),
    }[fate]()
    connection.execute(change(table, values).where(table.c.id == row.id, is_pending(table)))
    if fate is not Fate.RELEASED:
        kind = "loss" if fate is Fate.LOST else "parked"
        alike = fingerprint_of_loss(row.target, kind, why) if fate is Fate.LOST else None
        record(connection, table, row.id, kind, why, number=row.num_attempts, fingerprint=alike)


def _locked(table: Table, conditions: Conditions, limit: int) -> Any:
    """The rows that meet the conditions and are not locked, locked."""
    in_order = _found(table).where(*conditions).order_by(table.c.lease_until, table.c.id).limit(limit)
    return in_order.with_for_update(skip_locked=True, key_share=True)


def _found(table: Table) -> Any:
    c = table.c
    overdue = is_overdue(table).label("is_overdue")
    return select(*(c[name] for name in FACTS), c.claimed_by, c.order_key, c.lease_until, overdue)
