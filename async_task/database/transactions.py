"""Transactions that outlast a database which is away for a while."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from async_task.database.driver_errors import transient_error
from async_task.database.lanes import rest

T = TypeVar("T")
PATIENCE = 30.0
LONG_PATIENCE = 600.0
"""Seconds for which an outcome is held ready for a database that is away: to give it up is to make the call again."""


def retry_transient(work: Callable[[], T], patience: float = PATIENCE) -> T:
    """Do `work`, again while the infrastructure fails, with jittered backoff, for `patience` seconds; then raise."""
    until, pause = time.monotonic() + patience, 0.05
    while True:
        try:
            return work()
        except (DBAPIError, PoolTimeout) as error:
            is_passing = isinstance(error, (OperationalError, PoolTimeout)) or transient_error(error) is not None
            if not is_passing or time.monotonic() + pause > until:
                raise
        rest(pause * random.uniform(0.5, 1.5))  # noqa: S311 - jitter is no secret
        pause = min(2 * pause, 1.2)  # so that whoever comes back is met within 2 s


@contextmanager
def transaction_on(where: Engine | Connection) -> Iterator[Connection]:
    """A transaction on a connection of its own, or on this one."""
    if isinstance(where, Engine):
        with where.begin() as connection:
            yield connection
    else:
        with where.begin():
            yield where
