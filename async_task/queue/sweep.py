"""A sweep. Any number may run at once.

1. Recover orphans, in bounded pages.
2. Expire what is past its `expires_at`, likewise.
3. Release order keys whose worker died before it released the next attempt.
4. Forget workers that have been silent for a day.
"""

import datetime as dt
import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Engine, Table

from async_task.database.transactions import retry_transient
from async_task.queue import expiry, ordering, recovery, workers
from async_task.queue.pages import PAGE, pages
from async_task.queue.workers import Process

logger = logging.getLogger("async_task")
FORGET_AFTER = dt.timedelta(days=1)
LONGEST_WAIT = 10.0
"""Seconds; a server that runs a statement for a killed process may notice only at its end that the process is gone."""


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a sweep did, in attempts: orphans `recovered`; orphans `crashed`, which failed at the crash limit;
    `expired`."""

    recovered: int = 0
    crashed: int = 0
    expired: int = 0


def sweep(engine: Engine, table: Table, lease: dt.timedelta, *, page: int = PAGE) -> SweepReport:
    """Recover, expire, release; `page` rows at most in each transaction."""
    if retry_transient(partial(recovery.must_wait_for_heartbeats, engine, table, lease)):
        time.sleep(lease.total_seconds())  # each live worker sends a heartbeat within a third of a lease
    recovered, crashed = _recover(partial(recovery.recover_orphans, engine, table, lease), page)
    expired = sum(pages(partial(expiry.expire_overdue, engine, table), int, page))
    _release_overlooked(engine, table, page)
    retry_transient(partial(workers.forget_workers, engine, table, FORGET_AFTER))
    return SweepReport(recovered, crashed, expired)


def recover_process(engine: Engine, table: Table, process: Process, *, page: int = PAGE) -> SweepReport:
    """Recover the claims of a process that has died, before their leases are past, and delete its rows. Waits for what
    the server still keeps locked for it, for LONGEST_WAIT at most."""
    recovered = crashed = 0
    until = time.monotonic() + LONGEST_WAIT
    for is_first in itertools.chain((True,), itertools.repeat(False)):
        found = _recover(partial(recovery.recover_claims_of, engine, table, process), page)
        recovered, crashed = recovered + found[0], crashed + found[1]
        # Not after the first pass: its last claim may still be in its COMMIT, and is found by the name in these rows.
        if not is_first and retry_transient(partial(workers.deregister_process, engine, table, process)):
            break
        if time.monotonic() >= until:
            logger.warning("some claims of process %d are still locked: a sweep will recover them", process.pid)
            break
        time.sleep(0.02)
    return SweepReport(recovered, crashed)


def _recover(change: Callable[..., tuple[int, int]], page: int) -> tuple[int, int]:
    """Page by page; returns how many were released, and how many failed."""
    found = list(pages(change, lambda counted: counted[0], page))
    failed = sum(crashed for _, crashed in found)
    return sum(number for number, _ in found) - failed, failed


def _release_overlooked(engine: Engine, table: Table, page: int) -> None:
    after: str | None = None
    while True:
        released, after = retry_transient(partial(ordering.release_overlooked, engine, table, page, after))
        if released:
            logger.warning("%d attempts waited for others of their order key that had ended: released", released)
        if after is None:
            return
