"""The transaction in which an attempt is performed, or some of them one after the other: opened under the attempt's row
lock, tamed for the target's session, closed with the outcome."""

import contextlib
import datetime as dt
import time
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.engine import RootTransaction
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session

from async_task.database.dialects import disconnect
from async_task.database.driver_errors import FAULTS, is_transient
from async_task.database.lanes import Lane
from async_task.database.sessions import is_async_session
from async_task.errors import AsyncTaskError, ClaimLost
from async_task.queue.claim import Claim
from async_task.queue.fenced_writes import lock_all

SAVEPOINT = "async_task_call"


class CommittedInside(Exception):
    """The transaction is no longer ours: the target ended it with a COMMIT or ROLLBACK of its own."""

    def __init__(self) -> None:
        super().__init__("the target ended the attempt's transaction itself; see what it did before a retry")


class Disconnected(Exception):
    """The call was abandoned before its transaction was open: it is somebody else's now."""


class CallTransaction:
    """One transaction, opened before the call (locked) or at the target's first use of its session (leased)."""

    def __init__(self, lane: Lane, table: Table, claim: Claim, limit: dt.timedelta, *, for_session: bool) -> None:
        self._lane = lane
        self._table = table
        self._claim = claim
        self._limit = limit.total_seconds()
        self._opened_at: float | None = None
        self._for_session = for_session
        self._root: RootTransaction | None = None
        self._connection: Connection | None = None
        self._session: Session | None = None
        self._is_committed = False
        self._was_lost = False
        self._was_dropped = False
        self._met_fault = False
        self.was_rolled_back = False
        """Whether the server rolled back all of it in the middle of the call, for a fault: what came after that was in
        another transaction."""
        self.is_lost = False
        self.is_disconnected = False

    def disconnect(self) -> None:
        """End its conversation with the server, from outside of its thread: what the call answers is not written."""
        self.is_disconnected = True
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(Exception):
                disconnect(connection)

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    @property
    def is_usable(self) -> bool:
        """Whether the outcome can be written in it: it is open, and still the transaction that was begun."""
        root = self._root
        return self._connection is not None and not self.has_lost_connection() and root is not None and root.is_active

    def has_lost_connection(self) -> bool:
        """Whether its connection was lost; unless that was at the COMMIT, nothing of it was committed."""
        if self._connection is not None and _is_gone(self._connection):
            self._was_lost, self._was_dropped = True, self._connection not in FAULTS
        return self._was_lost

    def has_dropped_connection(self) -> bool:
        """Whether the call itself invalidated its connection: it was lost, and no driver had said so."""
        return self.has_lost_connection() and self._was_dropped

    @property
    def is_past_limit(self) -> bool:
        """Whether it was held for one claim longer than the server was told to allow."""
        return self._opened_at is not None and time.monotonic() - self._opened_at >= self._limit

    @property
    def holds_writes(self) -> bool:
        """Whether the target may have written in this transaction: it must then commit together with the outcome."""
        return self._for_session and self.is_open

    def open(self) -> Connection:
        """Begin, lock the row, check the claim, set the savepoint. Raises ClaimLost, and Disconnected."""
        if self.is_lost:
            raise ClaimLost("this attempt was taken or changed by somebody else")
        if self._connection is None:
            try:
                self._begin()
            except DBAPIError as problem:
                if not problem.connection_invalidated:
                    raise
                self._was_lost = False  # while it waited for this call: nothing was done in it
                self._begin()
        assert self._connection is not None
        return self._connection

    def _begin(self) -> None:
        connection = self._connection = self._connect()
        try:
            if self.is_disconnected:  # before there was anything to disconnect
                raise Disconnected
            FAULTS.pop(connection, None)  # met by what was done on it before
            self._root = connection.begin()
            self._lane.limit(connection, self._limit)
            self._lock(connection)
        except BaseException:
            self.close()  # without lock and savepoint nobody may write in it
            raise

    def go_on(self, claim: Claim) -> None:
        """To the next claim, in the same transaction if it is open. Raises ClaimLost and Severed: nothing was begun."""
        self._claim, self._session, self.is_lost = claim, None, False
        if self._connection is None:
            self.open()
        else:
            FAULTS.pop(self._connection, None)
            self._lock(self._connection)

    def _lock(self, connection: Connection) -> None:
        savepoint = SAVEPOINT if self._for_session else None
        limit = dt.timedelta(seconds=self._limit)
        if lock_all(connection, self._table, [self._claim], limit, savepoint=savepoint):
            self.is_lost = True
            raise ClaimLost("this attempt was taken or changed by somebody else")
        self._opened_at = time.monotonic()

    def _connect(self) -> Connection:
        try:
            return self._lane.lend_connection()
        except SQLAlchemyError:
            self._was_lost = True  # none was to be had: the weather, whatever the driver calls it
            raise

    def session(self, wanted: type[Any], made_by: type[Any], options: dict[str, Any]) -> Any:
        """The session for the target: of the class it asks for, or the user's own when that is one of these.

        Its commit() and rollback() end savepoints inside of ours, and nothing else.
        """
        cls = made_by if issubclass(made_by, wanted) else wanted
        session = cls(**options, join_transaction_mode="create_savepoint")
        own: Any = session.sync_session if is_async_session(cls) else session
        own.get_bind = lambda *args, **kwargs: self._open_for(own)
        self._session = own
        return session

    def _open_for(self, session: Session) -> Connection:
        # Who kept it from another call would write into a transaction of whatever is called now.
        if session is not self._session:
            raise AsyncTaskError("the call that this session was made for has ended")
        return self.open()

    def keep(self) -> None:
        """Bring the target's writes into our transaction. Raises what the database holds against them."""
        if self._session is not None:
            if self._session.in_transaction():
                self._session.commit()
            self._session.close()
            self._session = None
        if self.holds_writes and self._connection is not None:
            self._check_root()
            self._connection.exec_driver_sql(f"RELEASE SAVEPOINT {SAVEPOINT}")

    def undo(self) -> None:
        """Roll the target's writes back, and keep the lock; or find that the server has rolled back everything, and is
        no longer `is_usable`. Raises CommittedInside when they can no longer be rolled back."""
        if self._session is not None:
            with contextlib.suppress(Exception):
                self._session.rollback()
            with contextlib.suppress(Exception):
                self._session.close()
            self._session = None
        if not self.holds_writes or self._connection is None:
            return
        self._check_root()
        if self.has_lost_connection():
            return
        try:
            self._connection.exec_driver_sql(f"ROLLBACK TO SAVEPOINT {SAVEPOINT}")
        except DBAPIError as error:
            self._root = None
            self.was_rolled_back = FAULTS.get(self._connection, False)
            if not (self.has_lost_connection() or is_transient(error.orig) or self.was_rolled_back):
                raise CommittedInside from error

    def commit(self) -> None:
        """Raises what the database says; whether it was committed is then for the row to tell."""
        if self._root is not None:
            self._root.commit()
            self._is_committed = True

    def close(self) -> None:
        """Roll back what is not committed, and give the connection back."""
        _ = self.has_lost_connection(), self.has_met_fault()  # to be known afterwards
        connection, self._connection = self._connection, None
        if connection is None:
            return
        # After a COMMIT that failed, or one of the target's own, nobody knows what the driver still has begun.
        is_sound = self._is_committed or (self._root is not None and self._root.is_active and not self._was_lost)
        self._is_committed = False
        try:
            connection.rollback()
        except Exception:
            is_sound = False
        is_sound = is_sound and not self.is_disconnected
        with contextlib.suppress(Exception):
            self._lane.return_connection(connection, self._limit, is_sound=is_sound)

    def has_met_fault(self) -> bool:
        """Whether a statement on its own connection met an error of the infrastructure; of other engines it knows
        nothing."""
        if self._connection is not None:
            self._met_fault = self._connection in FAULTS
        return self._met_fault

    def _check_root(self) -> None:
        assert self._connection is not None
        if self.has_lost_connection():
            return
        if self._root is None or not self._root.is_active or self._connection.get_transaction() is not self._root:
            raise CommittedInside


def _is_gone(connection: Connection) -> bool:
    """Whether it was invalidated, or what the pool gave it was taken from under it."""
    return connection.invalidated or not (connection.closed or connection.connection.is_valid)
