"""Sweeps: give orphans back, expire what is past its time, let go what waits for nothing any more. In this order, in
bounded pages; any number may run."""

import datetime as dt
import itertools
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Table, insert, select, update
from sqlalchemy.exc import DBAPIError

from async_task.database.dialects import locks_rows, server_uptime
from async_task.database.driver_errors import is_transient
from async_task.database.transactions import retry_transient
from async_task.queue import ordering, predicates, workers
from async_task.queue.claim import Claim
from async_task.queue.ordering import release_in
from async_task.queue.workers import Process
from async_task.schema.audit import event, record
from async_task.schema.states import Status, ending, is_pending, recovering
from async_task.schema.tables import companion_tables
from async_task.wakeup import notify

CRASH_LIMIT = 3


PAGE = 500


logger = logging.getLogger("async_task")
T = TypeVar("T")
FORGET_AFTER = dt.timedelta(days=1)
LONGEST_MOURNING = 10.0
"""Seconds; a server that runs a statement for a process that was killed may see only at its end that it has gone."""


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a sweep did. `recovered`: orphans given back, `crashed`: orphans failed at the crash limit, `expired`."""

    recovered: int = 0
    crashed: int = 0
    expired: int = 0


def sweep(engine: Engine, table: Table, lease: dt.timedelta, *, page: int = PAGE) -> SweepReport:
    """Recover, expire, then mend the order of keys, `page` rows at most in each transaction."""
    if retry_transient(partial(unproven_orphans, engine, table, lease)):
        # After an outage the workers come back when we do: let each beat once before its claims are judged.
        time.sleep(lease.total_seconds())
    recovered = crashed = 0
    for found, failed in _pages(partial(recover_page, engine, table, lease), lambda found: found[0], page):
        recovered, crashed = recovered + found - failed, crashed + failed
    expired = sum(_pages(partial(expire_page, engine, table), lambda found: found, page))
    _mend(engine, table, page)
    retry_transient(partial(workers.forget_workers, engine, table, FORGET_AFTER))
    return SweepReport(recovered, crashed, expired)


def recover_process(engine: Engine, table: Table, process: Process, *, page: int = PAGE) -> SweepReport:
    """Give back, at once, what a process held that has died, as a sweep would when its leases are past; and take its
    rows away. What the server still keeps locked for it is waited for, for LONGEST_MOURNING at most."""
    recovered = crashed = 0
    until = time.monotonic() + LONGEST_MOURNING
    for is_first in itertools.chain((True,), itertools.repeat(False)):
        for found, failed in _pages(partial(recover_page_of, engine, table, process), lambda found: found[0], page):
            recovered, crashed = recovered + found - failed, crashed + failed
        # Not at the first look: its last claim may be in the middle of its commit, and is found by its name.
        if not is_first and retry_transient(partial(workers.deregister_process, engine, table, process)):
            break
        if time.monotonic() >= until:
            logger.warning("what process %d held is not free yet: the rest is left to a sweep", process.pid)
            break
        time.sleep(0.02)
    return SweepReport(recovered, crashed)


def _mend(engine: Engine, table: Table, page: int) -> None:
    """Let go what waits although nothing of its key is before it."""
    after: str | None = None
    while True:
        released, after = retry_transient(partial(ordering.release_overlooked, engine, table, page, after))
        if released:
            logger.warning("%d attempts waited for others of their key that were at rest; they are released", released)
        if after is None:
            return


def _pages(change: Callable[..., T], size: Callable[[T], int], page: int) -> Iterator[T]:
    """Page by page, until one is not full. A page that the database refuses is tried in halves, down to the one row
    that is to blame: it is left as it is, and does not stop the rest."""
    besides: list[uuid.UUID] = []
    limit = page
    while True:
        try:
            found = retry_transient(partial(change, limit=limit, besides=besides))
        except Refused as refused:
            if len(refused.ids) > 1:
                limit = len(refused.ids) // 2
                continue
            logger.error("the sweep leaves attempt %s as it is: %s", refused.ids[0], refused)
            besides, limit = [*besides, *refused.ids], page
            continue
        yield found
        if size(found) < limit:
            break


def recover_page(
    engine: Engine, table: Table, lease: dt.timedelta, *, limit: int = PAGE, besides: Sequence[uuid.UUID] = ()
) -> tuple[int, int]:
    """Give one page of orphans back, and count their crashes. Answers how many were found, and how many of them were
    not given back but failed, at the crash limit. Raises Refused."""
    with engine.begin() as connection:
        uptime = server_uptime(connection)
        if uptime is not None and uptime < lease.total_seconds():
            return 0, 0  # nobody could beat while the server was down
        alive = workers.alive_here(connection, table)
        found = connection.execute(predicates.orphans(table, lease, limit, besides=besides, alive=alive)).all()
        return _count_as_lost(connection, table, found, "was lost")


def recover_page_of(
    engine: Engine, table: Table, process: Process, *, limit: int = PAGE, besides: Sequence[uuid.UUID] = ()
) -> tuple[int, int]:
    """The same for one page of what a process holds that is known to have died, also before its leases are past; who
    sleeps is told. Rows whose locks the server has not taken back yet are left out. Raises Refused."""
    with engine.begin() as connection:
        names = workers.names_of(connection, table, process)
        found = connection.execute(predicates.claims_of(table, names, limit, besides=besides)).all() if names else []
        counted = _count_as_lost(connection, table, found, "has died")
        notify.notify_sleepers(connection, table, Counter(row.queue for row in found))
        return counted


def _count_as_lost(connection: Connection, table: Table, found: Sequence[Any], happened: str) -> tuple[int, int]:
    """Give these back, which are locked, and count their crashes. Answers as `recover` does."""
    with _refusing([row.id for row in found]):
        for row in found:
            how = f"the process {row.claimed_by} {happened}"
            values = recovering(table, CRASH_LIMIT, crashed_reason(row.num_crashes + 1, how))
            connection.execute(predicates.changed(table, values).where(table.c.id == row.id, is_pending(table)))
            record(connection, table, row.id, "crash", how, number=row.num_attempts)
    release_in(connection, table, [row.order_key for row in found])
    return len(found), sum(row.num_crashes + 1 >= CRASH_LIMIT for row in found)


def unproven_orphans(engine: Engine, table: Table, lease: dt.timedelta) -> bool:
    """Whether there are orphans, and this connection is too young to tell them from claims of workers that could not
    reach the database lately either."""
    if not locks_rows(engine.dialect):
        return False
    with engine.begin() as connection:
        since = connection.info.setdefault("async_task.connected", time.monotonic())
        if time.monotonic() - since >= lease.total_seconds():
            return False
        return connection.execute(predicates.orphans(table, lease, 1)).first() is not None


def expire_page(engine: Engine, table: Table, *, limit: int = PAGE, besides: Sequence[uuid.UUID] = ()) -> int:
    """Expire one page of what is past its `expires_at` and held by nobody. Answers how many. Raises Refused."""
    with engine.begin() as connection:
        ids = list(connection.scalars(predicates.overdue(table, limit, besides=besides)))
        values = ending(table, Status.EXPIRED, last_error=table.c.last_error, crashed=True)
        with _refusing(ids):
            if ids:
                connection.execute(update(table).where(table.c.id.in_(ids), is_pending(table)).values(values))
                events = [event(table, one, "expired", "past its expires_at") for one in ids]
                connection.execute(insert(companion_tables(table).events), events)
        release_in(connection, table, connection.scalars(predicates.keys_of(table, ids)) if ids else ())
        return len(ids)


class Refused(Exception):
    """The database refused the change of a page for the sake of one of its rows, at least: those with `ids`."""

    def __init__(self, ids: list[uuid.UUID], error: DBAPIError) -> None:
        super().__init__(f"{type(error.orig).__name__} for one of {len(ids)} rows")
        self.ids = ids


@contextmanager
def _refusing(ids: list[uuid.UUID]) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if error.connection_invalidated or is_transient(error.orig):
            raise
        raise Refused(ids, error) from error


def count_crash(engine: Engine, table: Table, claim: Claim, how: str) -> Status | None:
    """Count the crash of a claim whose process is known to have died. Answers the state it led to, None when somebody
    else was first."""
    with engine.begin() as connection:
        reason = crashed_reason(claim.num_crashes + 1, how)
        values = recovering(table, CRASH_LIMIT, reason)
        if connection.execute(predicates.settle(table, claim.id, claim.claim_id, values)).rowcount != 1:
            return None
        record(connection, table, claim.id, "crash", how, number=claim.number)
        release_in(connection, table, [claim.order_key])
        return connection.scalar(select(table.c.status).where(table.c.id == claim.id))


def crashed_reason(crashes: int, how: str) -> str:
    """What `last_error` says of an attempt that has crashed too often."""
    return f"crashed: {crashes} starts in a row were lost with their process; at the last, {how}"
