"""Sweeps: give orphans back, expire what is past its time, let go what waits for nothing any more. In this order, in
bounded pages; any number may run."""

import datetime as dt
import itertools
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from sqlalchemy import Engine, Table

from async_task.database.transactions import insist
from async_task.queue import ordering, pages, workers
from async_task.queue.identity import Process

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


def sweep(engine: Engine, table: Table, lease: dt.timedelta, *, page: int = pages.PAGE) -> SweepReport:
    """Recover, expire, then mend the order of keys, `page` rows at most in each transaction."""
    if insist(partial(pages.unproven_orphans, engine, table, lease)):
        # After an outage the workers come back when we do: let each beat once before its claims are judged.
        time.sleep(lease.total_seconds())
    recovered = crashed = 0
    for found, failed in _pages(partial(pages.recover, engine, table, lease), lambda found: found[0], page):
        recovered, crashed = recovered + found - failed, crashed + failed
    expired = sum(_pages(partial(pages.expire, engine, table), lambda found: found, page))
    _mend(engine, table, page)
    insist(partial(workers.forget_workers, engine, table, FORGET_AFTER))
    return SweepReport(recovered, crashed, expired)


def bury(engine: Engine, table: Table, process: Process, *, page: int = pages.PAGE) -> SweepReport:
    """Give back, at once, what a process held that has died, as a sweep would when its leases are past; and take its
    rows away. What the server still keeps locked for it is waited for, for LONGEST_MOURNING at most."""
    recovered = crashed = 0
    until = time.monotonic() + LONGEST_MOURNING
    for is_first in itertools.chain((True,), itertools.repeat(False)):
        for found, failed in _pages(partial(pages.bury, engine, table, process), lambda found: found[0], page):
            recovered, crashed = recovered + found - failed, crashed + failed
        # Not at the first look: its last claim may be in the middle of its commit, and is found by its name.
        if not is_first and insist(partial(workers.take_away, engine, table, process)):
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
        released, after = insist(partial(ordering.mend, engine, table, page, after))
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
            found = insist(partial(change, limit=limit, besides=besides))
        except pages.Refused as refused:
            if len(refused.ids) > 1:
                limit = len(refused.ids) // 2
                continue
            logger.error("the sweep leaves attempt %s as it is: %s", refused.ids[0], refused)
            besides, limit = [*besides, *refused.ids], page
            continue
        yield found
        if size(found) < limit:
            break
