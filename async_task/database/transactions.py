"""Transactions: on a given engine or connection, and repeated after transient errors."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from async_task.database.driver_errors import is_refusal, transient_error
from async_task.database.greenlets import sleep

T = TypeVar("T")
PATIENCE = 30.0
"""Seconds for which a claim is tried: giving it up costs nothing."""
LONG_PATIENCE = 600.0
"""Seconds for which the writing of an outcome is tried: after that the call would be made again."""


def retry_transient(work: Callable[[], T], patience: float = PATIENCE) -> T:
    """Do `work`, and repeat it after a transient error, with jittered backoff, for `patience` seconds; then raise."""
    until, pause = time.monotonic() + patience, 0.05
    while True:
        try:
            return work()
        except (DBAPIError, PoolTimeout) as error:
            if not _may_pass(error) or time.monotonic() + pause > until:
                raise
        sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - jitter is no secret
        pause = min(2 * pause, 1.2)  # so that we notice within 2 s that the database is back


def _may_pass(error: DBAPIError | PoolTimeout) -> bool:
    if isinstance(error, PoolTimeout) or transient_error(error) is not None:
        return True
    return isinstance(error, OperationalError) and not is_refusal(error.orig)


@contextmanager
def transaction_on(where: Engine | Connection) -> Iterator[Connection]:
    """A transaction on a new connection of an engine, or on the given connection."""
    if isinstance(where, Engine):
        with where.begin() as connection:
            yield connection
    else:
        with where.begin():
            yield where
