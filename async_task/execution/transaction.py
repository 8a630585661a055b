"""What a call, or several calls one after the other, write in the transaction of their rows: the target's session works
inside of a savepoint, and its writes are committed with the outcome."""

import datetime as dt

from sqlalchemy.exc import DBAPIError

from async_task.database.answers import Raised
from async_task.database.connections import limit_waits
from async_task.database.dialects import call_committed, chains, has_commit_listeners, pipelines
from async_task.database.driver_errors import FAULTS, is_transient
from async_task.database.greenlets import holding
from async_task.database.savepoints import reclaim_savepoint
from async_task.error_text import quotes_nothing
from async_task.execution.row_transaction import SAVEPOINT, RowTransaction
from async_task.queue.claim import Claim
from async_task.queue.fenced_writes import release_and_succeed, release_succeed_and_lock
from async_task.targets.context import Again
from async_task.wakeup.after_commit import forget_waiting, number_waiting, run_committed


class CommittedInside(Exception):
    """The target ended our transaction with a COMMIT or ROLLBACK of its own."""

    def __init__(self) -> None:
        super().__init__("the target ended the attempt's transaction itself; see what it did before a retry")
        quotes_nothing(self)


class CallTransaction(RowTransaction):
    """The transaction of a call, or of calls of one claim one after the other."""

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

    def _check_root(self) -> None:
        assert self._connection is not None
        if self.state.is_lost():
            return
        if self._root is None or not self._root.is_active or self._connection.get_transaction() is not self._root:
            raise CommittedInside
