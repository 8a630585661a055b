"""What a sweep would do now, row by row, and why. Nothing is written.

The rows and what becomes of them come from the functions and statements by which a sweep itself decides (`recovery`,
`expiry`, `ordering`, `workers`). Rows are locked for the moment of reading, as a sweep does: one that a call has locked
is left out.
"""

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine, Table, func, literal_column, select

from async_task.queue import expiry, ordering, recovery, workers
from async_task.queue.backlog import MOST_COUNTED
from async_task.queue.predicates import Conditions, can_expire
from async_task.queue.recovery import Fate, LostClaim
from async_task.queue.sweep import FORGET_AFTER
from async_task.targets.target import call_name

EXPIRED, KEY_RELEASED, FORGOTTEN = "expired", "released", "forgotten"
FATES = {
    Fate.RELEASED: "its call had not begun, so nothing is charged",
    Fate.PARKED: "nothing is charged",
    Fate.LOST: "a loss is counted",
}


@dataclass(frozen=True, slots=True)
class PlannedChange:
    """What a sweep would do to one row.

    `kind`: "attempt", "operation" (of a `Pollable`) or "worker". `id`: of the attempt, the key of the operation, or the
    name of the worker. `target`, `method`, `queue`: of the call; None for a worker.

    `action`: "recovered" (released, with a loss counted), "released" (uncharged: its call had not begun; or its turn
    has come in its order key), "parked" (uncharged, its worker was stopped or its call had returned), "expired",
    "resumed" (the operation gets an attempt again), "hurried" (it is past its maximal age: its attempt is due now), or
    "forgotten" (the row of a worker is deleted). `reason`: one sentence. `since`: when that began, by the database's
    clock; None if nothing tells.
    """

    kind: str
    id: str
    target: str | None
    method: str | None
    queue: str | None
    action: str
    reason: str
    since: dt.datetime | None

    @property
    def call(self) -> str | None:
        """What is called: `shop.orders.fulfill`; None for a worker."""
        return None if self.target is None or self.method is None else call_name(self.target, self.method)


@dataclass(frozen=True, slots=True)
class SweepPreview:
    """What a sweep would do now. `left_out`: how many changes more there would be than `changes` shows; of one kind
    10,000 are counted at most."""

    changes: tuple[PlannedChange, ...]
    left_out: int = 0

    def __bool__(self) -> bool:
        return bool(self.changes)


@dataclass(frozen=True, slots=True)
class Source:
    """`read(limit)`: the first changes of one kind. `count()`: how many there are, MOST_COUNTED at most."""

    read: Callable[[int], Sequence[PlannedChange]]
    count: Callable[[], int]


def collected(sources: Sequence[Source], limit: int) -> SweepPreview:
    """The changes of all sources in turn, `limit` at most."""
    found: list[PlannedChange] = []
    left_out = 0
    for source in sources:
        room = limit - len(found)
        read = source.read(room + 1)
        found += read[:room]
        if len(read) > room:
            left_out += max(source.count() - room, 1)
    return SweepPreview(tuple(found), left_out)


def preview_sweep(engine: Engine, table: Table, lease: dt.timedelta, limit: int) -> SweepPreview:
    """What `sweep` would do to attempts and workers."""
    with engine.connect() as connection, connection.begin() as transaction:
        preview = collected(_sources(connection, table, lease), limit)
        transaction.rollback()  # of the row locks
    return preview


def count_swept(connection: Connection, table: Table, lease: dt.timedelta) -> tuple[int, int]:
    """How many attempts a sweep would recover, and how many it would expire beside these, MOST_COUNTED at most."""
    gone = _gone(connection, table)
    orphans = recovery.orphan_conditions(connection, table, lease, gone)
    lost = sum(_count(connection, table, one) for one in (recovery.left_conditions(table, gone), orphans) if one)
    return lost, _count(connection, table, can_expire(table))


def _sources(connection: Connection, table: Table, lease: dt.timedelta) -> list[Source]:
    gone = _gone(connection, table)
    orphans = recovery.orphan_conditions(connection, table, lease, gone)
    return [
        Source(
            lambda limit: [_recovered(one) for one in recovery.claims_left_by(connection, table, gone, limit)],
            partial(_count, connection, table, recovery.left_conditions(table, gone)),
        ),
        Source(
            lambda limit: [
                _recovered(one) for one in recovery.lost_claims(connection, table, lease, limit, without_names=gone)
            ],
            partial(_count, connection, table, orphans or ()),
        ),
        Source(
            lambda limit: [_expired(row) for row in connection.execute(expiry.overdue(table, limit))],
            partial(_count, connection, table, can_expire(table)),
        ),
        Source(
            lambda limit: [_released(row) for row in ordering.to_release(connection, table, limit)],
            lambda: len(ordering.to_release(connection, table, MOST_COUNTED)),
        ),
        Source(
            lambda limit: [_forgotten(row) for row in workers.to_forget(connection, table, FORGET_AFTER, limit)],
            lambda: len(workers.to_forget(connection, table, FORGET_AFTER, MOST_COUNTED)),
        ),
    ]


def _gone(connection: Connection, table: Table) -> list[str]:
    """The names of workers with claims whose processes have ended on this machine."""
    gone = workers.gone_here(connection, table)
    return [name for process in gone for name in workers.names_of(connection, table, process)]


def _count(connection: Connection, table: Table, conditions: Conditions) -> int:
    some: Any = select(literal_column("1").label("one")).select_from(table).where(*conditions).limit(MOST_COUNTED)
    return connection.scalar(select(func.count()).select_from(some.subquery())) or 0


def _recovered(lost: LostClaim) -> PlannedChange:
    row = lost.row
    action, reason = lost.fate.value, f"{lost.why}: {FATES[lost.fate]}"
    if row.is_overdue:
        action, reason = EXPIRED, f"{reason}, and it is {expiry.REASON}"
    return _of_attempt(row, action, reason, row.lease_until)


def _expired(row: Any) -> PlannedChange:
    return _of_attempt(row, EXPIRED, f"it is {expiry.REASON}", row.expires_at)


def _released(row: Any) -> PlannedChange:
    before = "it is the first that has come" if row.is_new else "the attempts before it have ended"
    return _of_attempt(row, KEY_RELEASED, f"its turn has come in its order key: {before}", row.created_at)


def _of_attempt(row: Any, action: str, reason: str, since: dt.datetime | None) -> PlannedChange:
    return PlannedChange("attempt", str(row.id), row.target, row.method_name, row.queue, action, reason, since)


def _forgotten(row: Any) -> PlannedChange:
    reason = "it has no claims, and had no heartbeat for a day: its row is deleted"
    return PlannedChange("worker", row.name, None, None, None, FORGOTTEN, reason, row.beat_at)
