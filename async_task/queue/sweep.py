"""A sweep. Any number may run at once.

1. Recover what processes of this machine have left that have ended; then orphans, in bounded pages.
2. Expire what is past its `expires_at`, likewise.
3. Release order keys whose worker died before it released the next attempt.
4. Forget workers that have been silent for a day.
"""

import datetime as dt
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Engine, Table

from async_task.database.transactions import retry_transient
from async_task.queue import expiry, ledger, ordering, recovery, workers
from async_task.queue.final_failures import FinalFailure
from async_task.queue.hooks import NO_HOOKS, Hooks
from async_task.queue.pages import PAGE, pages
from async_task.queue.processes import Process
from async_task.queue.recovery import Fate, LostClaim

logger = logging.getLogger("async_task")
FORGET_AFTER = dt.timedelta(days=1)
SHORT_WAIT, LONGEST_WAIT = 2.0, 10.0
"""Seconds; a server that runs a statement for a killed process may notice only at its end that the process is gone."""


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a sweep did, in attempts: orphans `recovered`, and `expired` ones; and how many polls of operations
    (`Pollable`) it `resumed`."""

    recovered: int = 0
    expired: int = 0
    resumed: int = 0


def sweep(
    engine: Engine, table: Table, lease: dt.timedelta, *, page: int = PAGE,
    tell: Callable[[FinalFailure], None] | None = None, hooks: Hooks = NO_HOOKS,
) -> SweepReport:  # fmt: skip
    """Recover, expire, release; `page` rows at most in each transaction. `tell`: called for each that expired, as are
    the `hooks`, after the commit of its page."""
    recovered = recover_gone(engine, table, page=page, hooks=hooks)
    if retry_transient(partial(recovery.must_wait_for_heartbeats, engine, table, lease)):
        time.sleep(lease.total_seconds())  # each live worker sends a heartbeat within a third of a lease
    recovered += _recover_pages(partial(recovery.recover_orphans, engine, table, lease), page, hooks)
    expired = 0
    for failures in pages(partial(expiry.expire_overdue, engine, table), len, page):
        expired += len(failures)
        for one in failures:
            one.log()
            hooks.ended(one)
            if tell is not None:
                tell(one)
    _release_overlooked(engine, table, page)
    retry_transient(partial(workers.forget_workers, engine, table, FORGET_AFTER))
    return SweepReport(recovered, expired)


def recover_gone(engine: Engine, table: Table, *, page: int = PAGE, hooks: Hooks = NO_HOOKS) -> int:
    """Recover the claims of processes of this machine that have ended, before their leases are past. Returns how many.

    So a worker that is started again need not wait for the leases of its predecessor.
    """
    gone = retry_transient(partial(_gone, engine, table))
    swept = (recover_process(engine, table, one, page=page, patience=SHORT_WAIT, hooks=hooks) for one in gone)
    return sum(one.recovered for one in swept)


def recover_process(
    engine: Engine, table: Table, process: Process, *, page: int = PAGE, patience: float = LONGEST_WAIT,
    hooks: Hooks = NO_HOOKS,
) -> SweepReport:  # fmt: skip
    """Recover the claims of a process that has died, before their leases are past, and delete its rows. Waits for what
    the server still keeps locked for it, for `patience` seconds at most."""
    names = retry_transient(partial(_names, engine, table, process))
    return SweepReport(recover_workers(engine, table, names, page=page, patience=patience, hooks=hooks))


def recover_workers(
    engine: Engine, table: Table, names: Sequence[str], *, page: int = PAGE, patience: float = SHORT_WAIT,
    hooks: Hooks = NO_HOOKS,
) -> int:  # fmt: skip
    """The same for the workers with these `names`, which have died. Returns how many claims were recovered."""
    recovered = 0
    until = time.monotonic() + patience
    for is_first in itertools.chain((True,), itertools.repeat(False)):
        recovered += _recover_pages(partial(recovery.recover_claims_of, engine, table, names), page, hooks)
        # Not after the first pass: its last claim may still be in its COMMIT, and is found by the name in these rows.
        if not is_first and retry_transient(partial(workers.deregister_dead, engine, table, names)):
            for name in names:
                ledger.forget(name)
            break
        if time.monotonic() >= until:
            logger.warning("some claims of %s are still locked: a sweep will recover them", ", ".join(names))
            break
        time.sleep(0.02)
    return recovered


def _recover_pages(recover: Callable[..., list[LostClaim]], page: int, hooks: Hooks) -> int:
    """Recover page by page, and call the hooks for tries that count as lost. Returns how many claims."""
    recovered = 0
    for found in pages(recover, len, page):
        recovered += len(found)
        for one in found:
            if one.fate is Fate.LOST:
                hooks.lost(one.row, one.why)
    return recovered


def _gone(engine: Engine, table: Table) -> list[Process]:
    with engine.begin() as connection:
        return workers.gone_here(connection, table)


def _names(engine: Engine, table: Table, process: Process) -> list[str]:
    with engine.begin() as connection:
        return workers.names_of(connection, table, process)


def _release_overlooked(engine: Engine, table: Table, page: int) -> None:
    # Arrivals first: to release these is no repair.
    while retry_transient(partial(ordering.release_arrived, engine, table, page)) >= page:
        pass
    after: str | None = None
    while True:
        _, after = retry_transient(partial(ordering.release_overlooked, engine, table, page, after))
        if after is None:
            return
