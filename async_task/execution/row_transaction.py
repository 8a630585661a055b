"""A transaction that holds the lock of an attempt's row: how it is opened and closed."""

import contextlib
import datetime as dt
import threading
import time

from sqlalchemy import Connection, Table
from sqlalchemy.engine import RootTransaction
from sqlalchemy.exc import DBAPIError, InvalidRequestError, SQLAlchemyError

from async_task.database.connections import limit_waits
from async_task.database.disconnection import disconnect
from async_task.database.driver_errors import IN_CALLS
from async_task.database.greenlets import holding
from async_task.database.lanes import Lane
from async_task.database.savepoints import lend_savepoint, reclaim_savepoint
from async_task.errors import ClaimLost
from async_task.execution.call_session import CallSession
from async_task.execution.connection_state import ConnectionState
from async_task.queue.claim import Claim
from async_task.queue.fenced_writes import lock_claims
from async_task.wakeup.after_commit import forget_waiting, number_waiting

SAVEPOINT = "async_task_call"
LOST = "another worker has claimed or changed this attempt"


class Disconnected(Exception):
    """The call was abandoned before its transaction was open: its claim is released."""


class RowTransaction:
    """The half of `CallTransaction` that opens and closes it: before the call (locked mode), or when the target first
    uses its session (leased mode).

    `limit`: how long the server lets it idle, or run one statement. `for_session`: the target takes a session.
    `isolation`: its level, if not READ COMMITTED.
    """

    def __init__(
        self,
        lane: Lane,
        table: Table,
        claim: Claim,
        limit: dt.timedelta,
        *,
        for_session: bool,
        isolation: str | None = None,
    ) -> None:
        self._isolation = isolation
        self._lane = lane
        self._table = table
        self._claim = claim
        self._limit = limit.total_seconds()
        self._opened_at: float | None = None
        self._for_session = for_session
        self._root: RootTransaction | None = None
        self.session = CallSession(lane)
        self._opening = threading.Lock()
        self._is_committed = False
        self._num_waiting = 0
        self._next: Claim | None = None
        self.state = ConnectionState()
        self.keeps_with_success = False
        """Whether the target's writes are kept by `succeed`: its answer can only be a success."""
        self.was_rolled_back = False
        """Whether the server rolled back all of it during the call because of a fault. What the call did after that was
        in another transaction."""
        self.was_unopened = False
        """Whether the row could not be locked when the call last used its session."""
        self.is_claim_lost = False
        self.is_disconnected = False

    def disconnect(self) -> None:
        """Close its connection to the server, from another thread. The outcome of its call is not written."""
        self.is_disconnected = True
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(Exception):
                disconnect(connection)

    @property
    def _connection(self) -> Connection | None:
        return self.state.connection

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    @property
    def was_opened(self) -> bool:
        """Whether it has been open for the claim that it has now: without that, the call has written nothing in it."""
        return self._opened_at is not None

    @property
    def is_usable(self) -> bool:
        """Whether the outcome can be written in it: it is open, and still the transaction that we began."""
        root = self._root
        return self._connection is not None and not self.state.is_lost() and root is not None and root.is_active

    @property
    def is_past_limit(self) -> bool:
        """Whether it has been open for one claim longer than its limit."""
        return self._opened_at is not None and time.monotonic() - self._opened_at >= self._limit

    def open(self) -> Connection:
        """Begin, lock the row, check the claim, set the savepoint. Raises ClaimLost and Disconnected."""
        with holding(self._opening):  # two tasks of one call may use its session for the first time
            if self.is_claim_lost:
                raise ClaimLost(LOST)
            if self._connection is None:
                self._begin_anew()
            assert self._connection is not None
            return self._connection

    def _begin_anew(self) -> None:
        try:
            self._begin()
        except (DBAPIError, InvalidRequestError) as problem:
            # It was lost while it was idle, or the call before has left a transaction open in a generator: nothing of
            # this call was done on it.
            if isinstance(problem, DBAPIError) and not problem.connection_invalidated:
                raise
            self.state.forget_lost()
            self._begin()

    def _begin(self) -> None:
        connection = self.state.connection = self._connect()
        try:
            if self.is_disconnected:  # before there was a connection to close
                raise Disconnected
            self.state.forget_faults()
            self._root = connection.begin()
            self._lane.limit(connection, self._limit)
            self._lock(connection)
            self.was_unopened = False
        except BaseException as problem:
            self.was_unopened = True
            # Without lock and savepoint nothing may be written in it. If the row could not even be asked for, an
            # earlier call may have left the connection in another schema or role.
            self.close(is_reusable=isinstance(problem, ClaimLost))
            raise

    def begin_next(self, claim: Claim) -> None:
        """Lock the row of the next claim, in the same transaction if it is open. Raises as `open`."""
        self._claim, self.is_claim_lost = claim, False
        self.session.forget()
        if self._connection is None:
            self.open()
        else:
            self.state.forget_faults()
            self._lock(self._connection)

    def _lock(self, connection: Connection) -> None:
        savepoint = SAVEPOINT if self._for_session else None
        limit = dt.timedelta(seconds=self._limit) if self._lane.limits_transactions else None
        if lock_claims(connection, self._table, [self._claim], limit, savepoint=savepoint):
            self.is_claim_lost = True
            raise ClaimLost(LOST)
        self._begin_call(connection)

    def _begin_call(self, connection: Connection) -> None:
        self._opened_at = time.monotonic()
        self._num_waiting = number_waiting(connection)
        if self._for_session:  # 5 s more: the server's own limit comes first, and says what it is
            IN_CALLS.add(connection)
            limit_waits(connection, self._limit + 5)
            lend_savepoint(connection, SAVEPOINT)  # to the session

    def _connect(self) -> Connection:
        try:
            return self._lane.lend_connection(self._isolation)
        except SQLAlchemyError:
            self.state.note_lost()
            raise

    def _end_call(self) -> None:
        if self._connection is not None:
            IN_CALLS.discard(self._connection)

    def close(self, *, is_reusable: bool = True) -> None:
        """Roll back what is not committed, and return the connection. The row of the next claim is no longer locked.
        Unless it `is_reusable`, the connection is closed."""
        self._next = None
        self._end_call()
        connection = self.state.take()
        if connection is None:
            return
        reclaim_savepoint(connection)
        forget_waiting(connection)
        # After a COMMIT that failed, or one of the target's own, the driver may still be in a transaction.
        is_sound = self._is_committed or (self._root is not None and self._root.is_active and not self.state.is_lost())
        self._is_committed = False
        try:
            connection.rollback()
        except Exception:
            is_sound = False
        is_sound = is_sound and is_reusable and not self.is_disconnected
        with contextlib.suppress(Exception):
            self._lane.return_connection(connection, self._limit, is_sound=is_sound)
