"""Calls that are made together: no session is wanted, so that they share their locks and their commit.

1. Lock the rows of a portion (or keep their leases), as many as lately were called within `settle_within`.
2. One call follows the other.
3. Write all outcomes in one commit. Where all is well, and more waits, the next portion is locked with it: one way to
   the server and back for both.
"""

import datetime as dt
import logging
import time
import uuid
from collections.abc import Callable

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from async_task.database.dialects import chains
from async_task.database.driver_errors import is_statement_timeout, transient_error
from async_task.database.lanes import LOCKED_LIMIT
from async_task.database.transactions import retry_transient
from async_task.error_text import describe
from async_task.execution.adaptive import BatchSizes
from async_task.execution.call import ExecutionContext, PreparedCall, make
from async_task.execution.in_flight import InFlight, Reports, Waiting
from async_task.execution.settle import Called, Settled, decided, failure_of, park, settle_alone, settled
from async_task.outcomes import SUCCESS, Superseded
from async_task.queue import fenced_writes
from async_task.queue.claim import Claim
from async_task.queue.fenced_writes import OutcomeWrite

logger = logging.getLogger("async_task")


class GroupCommit:
    """`goes_along`: whether a call is to be made so; `within`: the seconds after which its outcome is to be written."""

    def __init__(
        self,
        context: ExecutionContext,
        in_flight: InFlight,
        sizes: BatchSizes,
        lease: dt.timedelta,
        reports: Reports,
        *,
        goes_along: Callable[[PreparedCall], bool],
        within: Callable[[PreparedCall], float],
    ) -> None:
        self._context = context
        self._in_flight = in_flight
        self._sizes = sizes
        self._lease = lease
        self._reports = reports
        self._goes_along = goes_along
        self._within = within
        self._unstarted: list[Claim] = []
        self._is_locked = False
        self.is_open = False
        """Whether a portion is locked, or being called."""

    @property
    def holds_others(self) -> bool:
        """Whether anything but its call ends with this lane's transaction."""
        return self.is_open and (self._is_locked or bool(self._in_flight.called))

    def perform(self) -> None:
        """What goes along at the front of the hand, until something else stands there. Inside of `lane.run`."""
        self._open()
        try:
            self._call_all()
            while self._go_on():
                self._call_all()
        finally:
            self._settle()

    def _open(self) -> None:
        """Lock the next few, if they want to be locked."""
        with self._in_flight.guarded():
            chosen = self._choose()
            self.is_open, self._is_locked = True, chosen[0][1].is_locked
            self._in_flight.offer(self._lock(chosen) if self._is_locked else chosen)

    def _call_all(self) -> None:
        began, number = time.monotonic(), 0
        while (one := self._in_flight.next()) is not None:
            number += 1
            self._call(*one)
        took = time.monotonic() - began
        if number:
            self._in_flight.in_calls += took
            self._sizes.to_settle(self._in_flight.within).note(number, took)

    def _call(self, claim: Claim, call: PreparedCall) -> None:
        began = time.monotonic()
        answer = make(self._context, claim, call, None)
        elapsed = time.monotonic() - began
        decision = SUCCESS if answer is None else decided(claim, call, answer, dt.timedelta(seconds=elapsed))
        with self._in_flight.guarded():
            self._in_flight.running = None
            if not self._in_flight.called:
                self._in_flight.held_since = time.monotonic()
            self._in_flight.called.append(Called(claim, call, decision))

    def _choose(self) -> list[Waiting]:
        """Calls that are to be locked alike, and written equally soon."""
        waiting = self._in_flight.waiting
        first = waiting[0][1]
        within = self._in_flight.within = self._within(first)
        most = self._sizes.to_settle(within).number
        chosen: list[Waiting] = []
        while waiting and len(chosen) < most:
            call = waiting[0][1]
            is_alike = call.is_locked is first.is_locked and self._within(call) == within
            if not is_alike or not self._goes_along(call):
                break
            chosen.append(waiting.popleft())
        return chosen

    def _lock(self, chosen: list[Waiting]) -> list[Waiting]:
        """Begin, and lock; what was taken from us meanwhile is dropped, and all of it when the database fails us."""
        claims = [claim for claim, _ in chosen]
        try:
            connection = self._context.lane.connection
            connection.begin()
            lost = fenced_writes.lock_claims(connection, self._context.table, claims, LOCKED_LIMIT)
        except (DBAPIError, PoolTimeout) as problem:
            self._context.lane.drop_connection()
            self._is_locked = False
            self._refuse(claims, problem)
            return []
        return self._without(lost, chosen)

    def _without(self, lost: set[uuid.UUID], chosen: list[Waiting]) -> list[Waiting]:
        if not lost:
            return chosen
        for claim, call in chosen:
            if claim.id in lost:
                self._reports.ended.append((claim, call, Settled(Superseded(claim.id))))
        return [one for one in chosen if one[0].id not in lost]

    # Going on.

    def _go_on(self) -> bool:
        """Write what has succeeded, and lock the next portion, in one way to the server and back. Whether it was done:
        not when there is more to write than that, or nothing to lock."""
        with self._in_flight.guarded():
            if not self._can_go_on():
                return False
            called, self._in_flight.called = self._in_flight.called, []
            chosen = self._choose()
            is_written = self._write_and_lock([one.claim for one in called], chosen)
        if is_written:
            self._reports.succeeded += (one.claim for one in called)
        else:
            for one in called:
                self._settle_alone(one)
        self._reports.tell()
        return self._is_locked

    def _can_go_on(self) -> bool:
        in_flight = self._in_flight
        if not (self._is_locked and in_flight.called and in_flight.waiting) or in_flight.stop() or not self._is_short():
            return False
        following = in_flight.waiting[0][1]
        is_alike = following.is_locked and self._goes_along(following)
        are_well = not self._unstarted and all(one.decision is SUCCESS for one in in_flight.called)
        return is_alike and are_well and chains(self._context.lane.connection)

    def _write_and_lock(self, succeeded: list[Claim], chosen: list[Waiting]) -> bool:
        """Whether it is known that all of the first are written."""
        lane, claims = self._context.lane, [claim for claim, _ in chosen]
        self._in_flight.running = self._in_flight.held_since = None
        try:
            number, lost = fenced_writes.succeed_and_lock(
                lane.connection, self._context.table, succeeded, claims, LOCKED_LIMIT
            )
        except Exception as problem:
            # Whichever of the two it was: they are looked at by themselves, and the others locked by themselves.
            _complain(len(succeeded), problem)
            lane.drop_connection()
            self._is_locked = False
            self._in_flight.offer(chosen)
            return False
        self._in_flight.offer(self._without(lost, chosen))
        return number == len(succeeded)

    # Settling.

    def _settle(self) -> None:
        """Write what was called, and commit; then tell of it."""
        in_flight = self._in_flight
        with in_flight.guarded():
            in_flight.running, in_flight.held_since, self.is_open = None, None, False
            unstarted = [] if self._is_short() else in_flight.take_all_waiting()
            unstarted, self._unstarted = self._unstarted + unstarted, []
            called, in_flight.called = in_flight.called, []
            try:
                self._write(called, unstarted)
                unstarted = []
            except Exception as problem:
                _complain(len(called), problem)
                self._context.lane.drop_connection()
            else:
                called = []
            self._is_locked = False
        for left in called:
            self._settle_alone(left)
        self._give_back(unstarted)
        self._reports.tell()

    def _settle_alone(self, one: Called) -> None:
        """What cannot be written holds up no other: its claim is a stray from now on."""
        try:
            self._reports.ended.append((one.claim, one.call, settle_alone(self._context, *one)))
        except Exception as problem:
            logger.error("attempt %s: %s", one.claim.id, describe(problem, one.call.secrets).summary)

    def _is_short(self) -> bool:
        """Whether what waits will have its turn so soon that nobody else need be asked."""
        return len(self._in_flight.waiting) <= self._sizes.to_claim.number and not self._in_flight.stop()

    def _write(self, called: list[Called], unstarted: list[Claim]) -> None:
        """Write and commit, in the transaction that locks, or in one for this. Raises what the database says."""
        if not (called or unstarted or self._is_locked):
            return
        connection = self._context.lane.connection
        transaction = connection.get_transaction() or connection.begin()
        succeeded = [one.claim for one in called if one.decision is SUCCESS]
        others = [one for one in called if one.decision is not SUCCESS]
        written = [OutcomeWrite(one.claim, one.decision, failure_of(one.decision, one.call)) for one in others]
        if not fenced_writes.write_outcomes(connection, self._context.table, succeeded, written, unstarted):
            raise SomebodyElse
        transaction.commit()
        self._reports.succeeded += succeeded
        self._reports.ended += ((one.claim, one.call, settled(one.claim, one.call, one.decision)) for one in others)

    def cut_off(self, *, locks: bool = True) -> bool:
        """Write all but the running call, whose row is locked again if it `locks`; what waits is given back. On this
        lane's connection, while its thread is in the call. Whether it was done."""
        in_flight, lane = self._in_flight, self._context.lane
        if in_flight.running is None:
            return True
        self._unstarted += in_flight.take_all_waiting()
        try:
            fenced_writes.extend_lease(lane.connection, self._context.table, in_flight.running.claim, self._lease)
            self._write(in_flight.called, self._unstarted)
            in_flight.called, self._unstarted = [], []
            self._is_locked = self._is_locked and locks
            if self._is_locked:
                lane.connection.begin()
                fenced_writes.lock_claims(lane.connection, self._context.table, [in_flight.running.claim], LOCKED_LIMIT)
        except Exception as problem:
            # What was called is written by the lane, as soon as this call is over.
            logger.warning("a long call was not cut off: %s", describe(problem).summary)
            lane.drop_connection()
            self._is_locked = False
            return False
        return True

    def _give_back(self, unstarted: list[Claim]) -> None:
        if unstarted:
            retry_transient(lambda: fenced_writes.release_claims(self._context.engine, self._context.table, unstarted))

    def _refuse(self, claims: list[Claim], problem: BaseException) -> None:
        """None of these was started: the weather passes, and who holds a row lets go of it, so that they go back where
        they stood; else they are parked."""
        is_late = isinstance(problem, DBAPIError) and is_statement_timeout(problem.orig)
        if is_late or isinstance(problem, PoolTimeout) or transient_error(problem) is not None:
            # One by one: who waited for somebody's lock would wait for it again, and keep the others locked.
            retry_transient(
                lambda: fenced_writes.release_abandoned(
                    self._context.engine, self._context.table, claims, started=False
                )
            )
            return
        for claim in claims:
            park(self._context, claim, f"its row could not be locked: {describe(problem).summary}", started=False)


class SomebodyElse(Exception):
    """Somebody else was first with one of the outcomes, at least: each is to be looked at by itself."""


def _complain(number: int, problem: BaseException) -> None:
    logger.warning("%d outcomes were not written at once: %s", number, describe(problem).summary)
