"""The transaction of a call, or of several calls one after the other: it locks the attempt's row, serves the target's
session inside of a savepoint, and commits with the outcome."""

import contextlib
import datetime as dt
import threading
import time

from sqlalchemy import Connection, Table
from sqlalchemy.engine import RootTransaction
from sqlalchemy.exc import DBAPIError, InvalidRequestError, SQLAlchemyError

from async_task.database.answers import Raised
from async_task.database.connections import limit_waits
from async_task.database.dialects import call_committed, chains, has_commit_listeners, pipelines
from async_task.database.disconnection import disconnect
from async_task.database.driver_errors import FAULTS, IN_CALLS, is_transient
from async_task.database.greenlets import holding
from async_task.database.lanes import Lane
from async_task.database.savepoints import lend_savepoint, reclaim_savepoint
from async_task.error_text import quotes_nothing
from async_task.errors import ClaimLost
from async_task.execution.call_session import CallSession
from async_task.execution.connection_state import ConnectionState
from async_task.queue.claim import Claim
from async_task.queue.fenced_writes import lock_claims, release_and_succeed, release_succeed_and_lock
from async_task.targets.context import Again
from async_task.wakeup.after_commit import forget_waiting, number_waiting, run_committed

SAVEPOINT = "async_task_call"
LOST = "another worker has claimed or changed this attempt"


class CommittedInside(Exception):
    """The target ended our transaction with a COMMIT or ROLLBACK of its own."""

    def __init__(self) -> None:
        super().__init__("the target ended the attempt's transaction itself; see what it did before a retry")
        quotes_nothing(self)


class Disconnected(Exception):
    """The call was abandoned before its transaction was open: its claim is released."""


class CallTransaction:
    """Opened before the call (locked mode), or when the target first uses its session (leased mode).

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

    def keep_or_undo(self, answer: object) -> object:
        """Keep the target's writes if it returned, undo them if it raised. Deferred constraints are left to the COMMIT:
        SET CONSTRAINTS costs a round trip, and its effect outlives the savepoint.

        Returns `answer`; `Raised` with the database's error if the writes cannot be kept, and with CommittedInside if
        they cannot be undone. If it `keeps_with_success`, the savepoint is still to be released.
        """
        answer = self._flushed(answer)
        self._end_call()
        if self._connection is not None and not self.state.is_lost():
            limit_waits(self._connection)
        if not isinstance(answer, Raised):
            try:
                self._keep_writes(can_wait=not isinstance(answer, Again))
                return answer
            except BaseException as error:
                answer = Raised(error)
        return self.undo(answer)

    def _flushed(self, answer: object) -> object:
        """Send what its session has not sent yet, as a part of the call: as long as the call may wait for a lock, this
        may too. Returns `answer`, or `Raised` with what the database raises."""
        if self._for_session:
            with holding(self._opening):  # a task that the call has left behind may be at it
                self.state.drop_unless_free()
        if isinstance(answer, Raised):
            return answer
        try:
            self.session.keep()
            return answer
        except BaseException as error:
            return Raised(error)

    def _end_call(self) -> None:
        if self._connection is not None:
            IN_CALLS.discard(self._connection)

    def undo(self, answer: Raised) -> Raised:
        """Undo the target's writes. Returns `answer`, or `Raised` with CommittedInside if they cannot be undone."""
        self.keeps_with_success = False
        try:
            if not isinstance(answer.error, CommittedInside):
                self._undo_writes()
            return answer
        except CommittedInside as found:
            found.__cause__ = answer.error
            return Raised(found)
        finally:
            if isinstance(answer.error, CommittedInside) or not self.is_usable:
                self.close()

    def _keep_writes(self, *, can_wait: bool) -> None:
        """Release the savepoint, or leave that to `succeed` if it `can_wait`. Raises what the database raises."""
        if self._for_session and self._connection is not None:
            reclaim_savepoint(self._connection)
            self._check_root()
            if can_wait and not self.state.is_lost() and pipelines(self._connection):
                self.keeps_with_success = True
            else:  # this is also how we notice that the target has ended the transaction
                self._connection.exec_driver_sql(f"RELEASE SAVEPOINT {SAVEPOINT}")

    def _undo_writes(self) -> None:
        """Roll back to the savepoint, and keep the lock. If the server has rolled back everything, the transaction is
        no longer `is_usable`. Raises CommittedInside if the writes can no longer be rolled back."""
        if not self.session.undo():
            self.state.drop()
        if not self._for_session or self._connection is None:
            return
        forget_waiting(self._connection, self._num_waiting)
        reclaim_savepoint(self._connection)
        self._check_root()
        if self.state.is_lost():
            return
        try:
            self._connection.exec_driver_sql(f"ROLLBACK TO SAVEPOINT {SAVEPOINT}")
        except DBAPIError as error:
            # After MySQL's deadlock (1213) the savepoint is gone too: only both together say that the server rolled
            # back everything, although the call may have caught the error.
            self._root = None
            self.was_rolled_back = FAULTS.get(self._connection, False)
            if not (self.state.is_lost() or is_transient(error.orig) or self.was_rolled_back):
                raise CommittedInside from error

    @property
    def can_lock_next(self) -> bool:
        """Whether `succeed_and_lock` may take the place of `succeed`."""
        connection = self._connection
        if connection is None or not self.keeps_with_success or not chains(connection):
            return False
        # What the target has left open, or what waits for the commit, is not to last into the next call.
        is_done = not connection.in_nested_transaction() and not number_waiting(connection)
        return is_done and self._lane.limits_transactions and self._lane.may_go_on(connection)

    def succeed_and_lock(self, following: Claim) -> None:
        """As `succeed` with the COMMIT, and lock the row of the next claim in the transaction that begins with it, all
        in one round trip. If that row could not be locked, `locks_next` stays False."""
        assert self._connection is not None
        self.keeps_with_success = False
        claims, limit = (self._claim, following), dt.timedelta(seconds=self._limit)
        if release_succeed_and_lock(self._connection, self._table, *claims, limit, SAVEPOINT):
            self._next = following

    @property
    def locks_next(self) -> bool:
        """Whether it is committed, and is now that of the next claim, with its row locked."""
        return self._next is not None

    def continue_with(self, claim: Claim) -> bool:
        """Become the transaction of this claim, if its row is locked in it already. Returns whether it is."""
        connection = self._connection
        if self._next is not claim or connection is None:
            return False
        self._claim, self._next = claim, None
        self.state.forget_faults()
        self._begin_call(connection)
        return True

    def succeed(self, *, commits: bool) -> None:
        """Keep the target's writes and write that its call has succeeded, in one round trip; if it `commits`, with the
        COMMIT, after which `commit` sends nothing. Raises as `release_and_succeed`."""
        assert self._connection is not None
        self.keeps_with_success = False
        is_last = commits and not has_commit_listeners(self._connection)
        release_and_succeed(self._connection, self._table, self._claim, SAVEPOINT, commits=is_last)

    def commit(self) -> None:
        """Raises what the database raises. Then only the row tells whether it was committed."""
        if self._root is None:
            return
        connection = self._connection
        if self.locks_next and connection is not None:
            call_committed(connection)  # it is committed, and SQLAlchemy's would end the transaction of the next claim
        else:
            self._root.commit()
            self._is_committed = True
        if connection is not None:
            run_committed(connection)

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

    def _check_root(self) -> None:
        assert self._connection is not None
        if self.state.is_lost():
            return
        if self._root is None or not self._root.is_active or self._connection.get_transaction() is not self._root:
            raise CommittedInside
