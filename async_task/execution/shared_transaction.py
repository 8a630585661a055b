"""A transaction that calls of one target share, because it says `batch=`.

1. One call follows the other: its row is locked, a SAVEPOINT set, the target called with a session of its own.
2. What it wrote is kept, or undone alone, and its outcome is written before the next call begins: whatever ends the
   transaction, be it a COMMIT of a later target's own, no writes of it are committed without the outcome.
3. One COMMIT for all. When it fails, or anything before it, nothing is guessed: each row is read again, and what is not
   written is to be performed again by itself.
"""

import datetime as dt
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from async_task.database.lanes import Raised
from async_task.error_text import describe
from async_task.errors import ClaimLost
from async_task.execution.call import ExecutionContext, PreparedCall, make
from async_task.execution.faults import Fault, judged
from async_task.execution.settle import (
    Called,
    Settled,
    after_lost_claim,
    decided,
    failure_of,
    found_written,
    kept_or_undone,
    settle_alone,
    settle_fault,
    settle_kept,
    settled,
)
from async_task.execution.transaction import CallTransaction, Disconnected
from async_task.queue import fenced_writes
from async_task.queue.claim import Claim

logger = logging.getLogger("async_task")


class Ended(NamedTuple):
    """A claim, its call, and what became of it."""

    claim: Claim
    call: PreparedCall
    settled: Settled


class SharedTransaction:
    """`limit`: how long each of its calls may take. Inside of `lane.run`."""

    def __init__(self, context: ExecutionContext, limit: dt.timedelta) -> None:
        self._context = context
        self._limit = limit
        self._transaction: CallTransaction | None = None
        self._afterwards: list[tuple[Claim, PreparedCall, Callable[[], Settled | None]]] = []
        self.called: list[Called] = []
        """Whose outcome is written here, and not committed."""
        self._undone: list[tuple[Claim, PreparedCall]] = []
        self._is_abandoned = False

    @property
    def undone(self) -> list[tuple[Claim, PreparedCall]]:
        """What is to be performed again by itself, once this has ended: nothing of it is committed. When it was
        abandoned, nothing: somebody else performs it."""
        is_given_back = self._transaction is not None and self._transaction.is_disconnected
        return [] if is_given_back else self._undone

    def abandon(self) -> list[Claim]:
        """From another thread: nothing further is begun, what is not committed is undone. Answers the claims of what
        was begun before the call that is running; those that were settled meanwhile stand no longer."""
        self._is_abandoned = True
        if self._transaction is not None:
            self._transaction.disconnect()
        ended = [one[0] for one in self._afterwards] + [one[0] for one in self._undone]
        return [one.claim for one in self.called] + ended

    def perform(self, claim: Claim, call: PreparedCall) -> bool:
        """Make the call, and write its outcome. Whether another one can follow."""
        try:
            transaction = self._go_on(claim)
        except ClaimLost:
            self._end_later(claim, call, lambda: after_lost_claim(self._context, claim, call))
            return True
        except (DBAPIError, PoolTimeout, Disconnected) as problem:
            self._fall_apart(problem)
            self._undone.append((claim, call))
            return False
        began = time.monotonic()
        answer = make(self._context, claim, call, transaction)
        if transaction.is_disconnected:
            return False
        answer = kept_or_undone(transaction, answer)
        return self._note(transaction, claim, call, answer, dt.timedelta(seconds=time.monotonic() - began))

    def end(self) -> list[Ended]:
        """Commit. What became of all that were called, but for those that are `undone` now; when it was abandoned, of
        those that were settled before somebody gave them back."""
        is_committed = self._commit()
        for one in self.called:
            self._end_later(one.claim, one.call, partial(self._ended, one, is_committed=is_committed))
        return [ended for ended in map(self._brought_to_its_end, self._afterwards) if ended is not None]

    def break_off(self) -> None:
        """Undo what was called: what is claimed is then found as stray."""
        self._context.lane.transaction = None
        if self._transaction is not None:
            self._transaction.close()

    def _go_on(self, claim: Claim) -> CallTransaction:
        context = self._context
        if self._transaction is None:
            self._transaction = context.lane.transaction = CallTransaction(
                context.lane, context.table, claim, self._limit, for_session=True
            )
            if self._is_abandoned:  # while there was nothing to disconnect
                self._transaction.disconnect()
        self._transaction.go_on(claim)
        return self._transaction

    def _note(
        self, transaction: CallTransaction, claim: Claim, call: PreparedCall, answer: object, elapsed: dt.timedelta
    ) -> bool:
        if not transaction.is_usable:  # its target ended the transaction, or the server did
            if isinstance(answer, Raised):
                self._end_later(
                    claim, call, lambda: settle_kept(self._context, claim, call, transaction, answer, elapsed)
                )
            else:
                self._undone.append((claim, call))
            return False
        answer = judged(call, transaction, answer)
        if isinstance(answer, Fault):
            fault = answer
            self._end_later(claim, call, lambda: settle_fault(self._context, claim, call, fault, elapsed))
            return True
        return self._write(transaction, Called(claim, call, decided(claim, call, answer, elapsed)))

    def _write(self, transaction: CallTransaction, one: Called) -> bool:
        claim, call, decision = one
        try:
            written = fenced_writes.write_outcome(
                transaction.open(), self._context.table, claim, decision, failure_of(decision, call)
            )
            if written:
                self.called.append(one)
                return True
            raise ClaimLost("the target changed the row of its own attempt")
        except Exception as problem:
            self._fall_apart(problem)
        if decision.error is None:
            self._undone.append((claim, call))
        else:  # nothing of it is lost with the transaction: it is not called again for that
            self._end_later(claim, call, lambda: settle_alone(self._context, claim, call, decision))
        return False

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
            self._fall_apart(problem)
            return False
        finally:
            self._context.lane.transaction = None
            transaction.close()

    def _fall_apart(self, problem: BaseException) -> None:
        logger.warning("%d calls in one transaction are undone: %s", len(self.called), describe(problem).summary)
        if self._transaction is not None:
            self._transaction.close()

    def _ended(self, one: Called, *, is_committed: bool) -> Settled | None:
        """What was written of it; None: nothing, and it is performed again."""
        result = settled(*one) if is_committed else found_written(self._context, *one)
        if result is None:
            self._undone.append((one.claim, one.call))
        return result

    def _end_later(self, claim: Claim, call: PreparedCall, settle: Callable[[], Settled | None]) -> None:
        """Once the transaction has ended, which holds the row, and perhaps the pool's last connection."""
        self._afterwards.append((claim, call, settle))

    def _brought_to_its_end(self, one: tuple[Claim, PreparedCall, Callable[[], Settled | None]]) -> Ended | None:
        """What cannot be written holds up no other: its claim is a stray from now on."""
        claim, call, settle = one
        try:
            try:
                result = settle()
            except ClaimLost:
                result = after_lost_claim(self._context, claim, call)
        except Exception as problem:
            logger.error("attempt %s: %s", claim.id, describe(problem, call.secrets).summary)
            return None
        return None if result is None else Ended(claim, call, result)
