"""Sweeps: give orphans back, then expire what is past its time. In this order, in bounded pages; any number may run."""

import datetime as dt
from dataclasses import dataclass

from sqlalchemy import Engine, Table

from async_task import transactions

FORGET_AFTER = dt.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a sweep did. `recovered`: orphans given back, `crashed`: orphans failed at the crash limit, `expired`."""

    recovered: int = 0
    crashed: int = 0
    expired: int = 0


def sweep(engine: Engine, table: Table, lease: dt.timedelta) -> SweepReport:
    """Recover, then expire, page by page until a page is not full."""
    recovered = crashed = expired = 0
    while True:
        found, failed = transactions.recover(engine, table, lease)
        recovered, crashed = recovered + found - failed, crashed + failed
        if found < transactions.PAGE:
            break
    while True:
        found = transactions.expire(engine, table)
        expired += found
        if found < transactions.PAGE:
            break
    transactions.forget_workers(engine, table, FORGET_AFTER)
    return SweepReport(recovered, crashed, expired)
