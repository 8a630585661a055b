"""A transaction that calls of one method share, because their target says `batch=`.

1. The calls run one after the other: each locks its row, sets a SAVEPOINT, and gets a session of its own.
2. Its writes are kept, or undone alone, and its outcome is written before the next call begins. So no writes are ever
   committed without their outcome, even if a later target ends the transaction with a COMMIT of its own.
3. One COMMIT ends them all. If that fails, or anything before it, nothing is guessed: each row is read again, and calls
   that were not committed are performed again, each by itself.
"""

import datetime as dt
import logging
import time
from collections.abc import Callable
from functools import partial

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from async_task.database.answers import Raised
from async_task.error_text import describe
from async_task.errors import ClaimLost
from async_task.execution.call import run_call
from async_task.execution.faults import Fault, classify
from async_task.execution.follow_up import CommittedOutcomes
from async_task.execution.in_flight import ClaimedCall, FinishedCall, Settlement, finish
from async_task.execution.outcome_writer import read_back, settle_or_log, write_in, write_unless_written
from async_task.execution.prepared_call import ExecutionContext, PreparedCall
from async_task.execution.row_transaction import Disconnected
from async_task.execution.settle import settle, settle_fault, settle_lost_claim
from async_task.execution.starts import NotStarted
from async_task.execution.transaction import CallTransaction
from async_task.queue.claim import Claim
from async_task.queue.fenced_writes import NotReleased

logger = logging.getLogger("async_task")


class SharedTransaction:
    """`limit`: how long each of its calls may take. `isolation`: its level, if not READ COMMITTED. Inside of
    `lane.run`."""

    def __init__(self, context: ExecutionContext, limit: dt.timedelta, isolation: str | None) -> None:
        self._context = context
        self._isolation = isolation
        self._limit = limit
        self._transaction: CallTransaction | None = None
        self._to_settle: list[tuple[Claim, PreparedCall, Callable[[], Settlement | None]]] = []
        """Calls to settle once the transaction has ended: it holds their rows, and perhaps the pool's last
        connection."""
        self.finished: list[FinishedCall] = []
        """Calls whose outcome is written in the transaction, and not committed."""
        self._undone: list[ClaimedCall] = []
        self._is_abandoned = False

    @property
    def undone(self) -> list[ClaimedCall]:
        """Calls to perform again, each by itself, once the transaction has ended: nothing of them is committed. None if
        it was abandoned: their claims are released."""
        is_released = self._transaction is not None and self._transaction.is_disconnected
        return [] if is_released else self._undone

    def run_call(self, claim: Claim, call: PreparedCall) -> bool:
        """Run the call, and write its outcome. Returns whether another call can follow."""
        try:
            transaction = self._begin_next(claim)
        except ClaimLost:
            self._settle_later(claim, call, lambda: settle_lost_claim(self._context, claim, call))
            return True
        except (DBAPIError, PoolTimeout, Disconnected) as problem:
            self._close_after(problem)
            self._undone.append((claim, call))
            return False
        began = time.monotonic()
        try:
            answer = run_call(self._context, claim, call, transaction)
        except NotStarted:
            self._undone.append((claim, call))
            return False
        if transaction.is_disconnected:
            return False
        answer = transaction.keep_or_undo(answer)
        return self._write_outcome(transaction, claim, call, answer, time.monotonic() - began)

    def finish(self, outcomes: CommittedOutcomes) -> None:
        """Commit, and add the outcomes of all calls except the `undone`. If it was abandoned, add those of calls that
        were settled before their claims were released."""
        is_committed = self._commit()
        for finished in self.finished:
            settle_finished = partial(self._settle_finished, finished, is_committed=is_committed)
            self._settle_later(finished.claim, finished.call, settle_finished)
        for one in self._to_settle:
            if (settlement := settle_or_log(*one)) is not None:
                outcomes.add(one[0], one[1], settlement)

    def roll_back(self) -> None:
        """Undo all calls. A sweep recovers their claims."""
        self._context.lane.transaction = None
        if self._transaction is not None:
            self._transaction.close()

    def abandon(self) -> list[Claim]:
        """From another thread: start nothing further, and undo what is not committed.

        Returns the claims of all calls that began before the running one. Those that were settled meanwhile are no
        longer ours.
        """
        self._is_abandoned = True
        if self._transaction is not None:
            self._transaction.disconnect()
        others = [one[0] for one in self._to_settle] + [one[0] for one in self._undone]
        return [one.claim for one in self.finished] + others

    # One call.

    def _begin_next(self, claim: Claim) -> CallTransaction:
        # Each row is locked just before its call: claims whose rows are locked cannot be released when a call is slow.
        lane = self._context.lane
        if self._transaction is None:
            self._transaction = lane.transaction = CallTransaction(
                lane, self._context.table, claim, self._limit, for_session=True, isolation=self._isolation
            )
            if self._is_abandoned:  # before there was anything to disconnect
                self._transaction.disconnect()
        self._transaction.begin_next(claim)
        return self._transaction

    def _write_outcome(
        self, transaction: CallTransaction, claim: Claim, call: PreparedCall, answer: object, seconds: float
    ) -> bool:
        if not transaction.is_usable:  # its target or the server has ended the transaction
            if isinstance(answer, Raised):
                self._settle_later(
                    claim, call, lambda: settle(self._context, claim, call, transaction, answer, seconds)
                )
            else:
                self._undone.append((claim, call))
            return False
        answer = classify(call, transaction, answer)
        if isinstance(answer, Fault):
            fault = answer
            self._settle_later(claim, call, lambda: settle_fault(self._context, claim, call, fault, seconds))
            return True
        return self._write(transaction, finish(claim, call, answer, seconds), seconds)

    def _write(self, transaction: CallTransaction, finished: FinishedCall, seconds: float) -> bool:
        claim, call, decision = finished.claim, finished.call, finished.decision
        try:
            # One by one, and not all in one statement: a COMMIT of a later target would commit the writes of this one
            # without its outcome.
            finished = write_in(transaction, self._context, finished)
        except NotReleased as unkept:
            answer = transaction.undo(Raised(unkept.error))
            return self._write_outcome(transaction, claim, call, answer, seconds)
        except Exception as problem:
            self._close_after(problem)
            if decision.error is None:
                self._undone.append((claim, call))
            else:  # it has no writes that could be lost with the transaction, and is not called again
                self._settle_later(claim, call, lambda: write_unless_written(self._context, finished))
            return False
        self.finished.append(finished)
        return True

    def _settle_later(self, claim: Claim, call: PreparedCall, settle: Callable[[], Settlement | None]) -> None:
        self._to_settle.append((claim, call, settle))

    # All calls.

    def _commit(self) -> bool:
        transaction = self._transaction
        if transaction is None:
            return True
        try:
            if transaction.is_disconnected or not transaction.is_usable:
                return False
            transaction.commit()
            return True
        except Exception as problem:
            self._close_after(problem)
            return False
        finally:
            self._context.lane.transaction = None
            transaction.close()

    def _close_after(self, problem: BaseException) -> None:
        logger.warning("%d calls of one transaction are undone: %s", len(self.finished), describe(problem).summary)
        if self._transaction is not None:
            self._transaction.close()

    def _settle_finished(self, one: FinishedCall, *, is_committed: bool) -> Settlement | None:
        """What was committed of the call. None if nothing was: it is performed again."""
        settlement = one.settlement if is_committed else read_back(self._context, one)
        if settlement is None:
            self._undone.append((one.claim, one.call))
        return settlement
