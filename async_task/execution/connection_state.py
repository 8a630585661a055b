"""What has become of the connection of a call: it is asked again after the connection was returned."""

import asyncio
import contextlib
import threading
from typing import Any

from sqlalchemy import Connection

from async_task.database.driver_errors import FAULTS

LONGEST_END = 1.0
"""Seconds that a statement may take to its end after the call."""
_Lock = type(threading.Lock())


class ConnectionState:
    """`connection`: that of the transaction; None before it is open, and after it is closed."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self._is_lost = False
        self._was_dropped = False
        self._is_in_use = False
        self._has_met_fault = False

    def forget_faults(self) -> None:
        """A call begins: the faults of earlier work on its connection are not its own."""
        self._is_in_use = False
        if self.connection is not None:
            FAULTS.pop(self.connection, None)

    def note_lost(self) -> None:
        """No connection could be made: an infrastructure error, whatever the driver calls it."""
        self._is_lost = True

    def forget_lost(self) -> None:
        """It was lost while nothing was done in it, and another one is made."""
        self._is_lost = False

    def is_lost(self) -> bool:
        """Whether it was lost. Unless that was during the COMMIT, nothing was committed."""
        if self.connection is not None and _is_gone(self.connection):
            self._is_lost, self._was_dropped = True, self.connection not in FAULTS
        return self._is_lost

    def is_dropped(self) -> bool:
        """Whether the call itself invalidated it: it was lost, and no driver had reported that."""
        return self.is_lost() and (self._was_dropped or self._is_in_use)

    def drop_unless_free(self) -> None:
        """After the call. Drop it if it was detached from its pool, or if a statement is still running on it: a stream
        or COPY that was not read to its end, and that the frames of an error may hold. Each further statement would
        wait for that one, for ever."""
        if self.connection is None or self.is_lost():
            return
        if _is_busy(self.connection):
            self.drop()
        elif self.connection.connection.is_detached:
            _end_detached(self.connection)

    def drop(self) -> None:
        """Drop it, as the call still uses it; what becomes of its statements says nothing."""
        if self.connection is not None:
            self.connection.invalidate()
            self._is_in_use = True

    def has_met_fault(self) -> bool:
        """Whether a statement on it met an error of the infrastructure. Other engines do not count."""
        if self.connection is not None:
            self._has_met_fault = self.connection in FAULTS
        return self._has_met_fault

    def take(self) -> Connection | None:
        """The connection, to be returned. What has become of it is remembered."""
        _ = self.is_lost(), self.has_met_fault()
        connection, self.connection = self.connection, None
        return connection


def _is_busy(connection: Connection) -> bool:
    """Whether a statement of the call's is running on it."""
    pooled = connection.connection
    lock = getattr(pooled.driver_connection, "lock", None)  # psycopg's
    if isinstance(lock, _Lock):  # another thread may just be ending its own
        is_free = lock.acquire(timeout=LONGEST_END)
        if is_free:
            lock.release()
        return not is_free
    others = getattr(pooled.dbapi_connection, "_execute_mutex", None)  # SQLAlchemy's, for other asynchronous drivers
    return any(isinstance(one, asyncio.Lock) and one.locked() for one in (lock, others))


def _end_detached(connection: Connection) -> None:
    detached: Any = connection.connection
    with contextlib.suppress(Exception):
        connection.dialect.do_close(detached.dbapi_connection)
    detached.invalidate()


def _is_gone(connection: Connection) -> bool:
    """Whether it was invalidated or closed, or the pool's connection below it was."""
    return connection.invalidated or connection.closed or not connection.connection.is_valid
