"""Group commit: calls that take no session share the locks of their rows, and the commit of their outcomes.

1. Lock the rows of a group (or rely on their leases): as many as were lately called within `settle_within`.
2. Run the calls one after the other.
3. Write all outcomes in one commit. If all have succeeded and more calls wait, the same round trip locks the next
   group.

What is locked can only be settled on the connection that locked it. A call that takes no session leaves that connection
idle, so the watchdog may use it during the call.
"""

import contextlib
import datetime as dt
import logging
import time
import uuid
from collections.abc import Iterable

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from async_task.database.dialects import chains
from async_task.database.lanes import LOCKED_LIMIT
from async_task.error_text import describe
from async_task.execution.adaptive import BatchSizes
from async_task.execution.call import run_call
from async_task.execution.error_hook import is_hooked
from async_task.execution.follow_up import CommittedOutcomes
from async_task.execution.in_flight import (
    ClaimedCall,
    CommitMode,
    CommitRules,
    FinishedCall,
    InFlight,
    Settlement,
    finish,
)
from async_task.execution.outcome_writer import commit_and_lock, commit_group, write_each, write_group, write_hooked
from async_task.execution.prepared_call import ExecutionContext, PreparedCall
from async_task.execution.release import release_unlocked, release_unstarted
from async_task.execution.starts import NotStarted
from async_task.outcomes import SUCCESS, Superseded
from async_task.queue import fenced_writes
from async_task.queue.claim import Claim

logger = logging.getLogger("async_task")


class GroupCommit:
    """The groups of one lane's batch, one after the other."""

    def __init__(
        self,
        context: ExecutionContext,
        in_flight: InFlight,
        sizes: BatchSizes,
        rules: CommitRules,
        lease: dt.timedelta,
        outcomes: CommittedOutcomes,
    ) -> None:
        self._context = context
        self._in_flight = in_flight
        self._sizes = sizes
        self._rules = rules
        self._lease = lease
        self._outcomes = outcomes
        self._unstarted: list[Claim] = []
        self._is_locked = False
        self.is_open = False
        """Whether a group is locked, or its calls run."""

    @property
    def holds_others(self) -> bool:
        """Whether the lane's transaction holds more than the running call."""
        return self.is_open and (self._is_locked or bool(self._in_flight.finished))

    def run(self) -> None:
        """Run and settle the grouped calls at the front, up to the first other one. Inside of `lane.run`."""
        self._open_group()
        try:
            self._run_calls()
            while self._commit_and_lock_next():
                self._run_calls()
        finally:
            self._settle()

    def _open_group(self) -> None:
        with self._in_flight.lock():
            group = self._next_group()
            self.is_open, self._is_locked = True, group[0][1].is_locked
            self._in_flight.schedule(self._lock_rows(group) if self._is_locked else group)

    def _next_group(self) -> list[ClaimedCall]:
        """Calls that are locked alike, and settled equally soon."""
        waiting = self._in_flight.waiting
        first = waiting[0][1]
        seconds = self._in_flight.settle_within = self._rules.seconds(first)
        maximum = self._sizes.to_settle(seconds).number
        group: list[ClaimedCall] = []
        known = None
        while waiting and len(group) < maximum:
            call = waiting[0][1]
            # Calls of one method and time limit are alike, and most groups are of one method.
            if known is None or call.method is not known.method or call.timeout != known.timeout:
                is_alike = call.is_locked is first.is_locked and self._rules.seconds(call) == seconds
                if not is_alike or not self._is_grouped(call):
                    break
                known = call
            group.append(waiting.popleft())
        return group

    def _is_grouped(self, call: PreparedCall) -> bool:
        return self._rules.mode(call) is CommitMode.GROUPED

    def _lock_rows(self, group: list[ClaimedCall]) -> list[ClaimedCall]:
        """Begin, and lock the rows. Returns the calls whose claims are still ours: none after a database error."""
        claims, connection = [claim for claim, _ in group], None
        try:
            connection = self._context.lane.connection
            connection.begin()
            lost = fenced_writes.lock_claims(connection, self._context.table, claims, LOCKED_LIMIT)
        except (DBAPIError, PoolTimeout) as problem:
            if connection is not None and not connection.invalidated:
                # MariaDB notices a closed connection late, and keeps the rows locked that are to be released now.
                with contextlib.suppress(Exception):
                    connection.rollback()
            self._context.lane.drop_connection()
            self._is_locked = False
            release_unlocked(self._context, claims, problem)
            self._outcomes.add_released(claims)
            return []
        return self._without_lost(lost, group)

    def _without_lost(self, lost: set[uuid.UUID], group: list[ClaimedCall]) -> list[ClaimedCall]:
        if not lost:
            return group
        for claim, call in group:
            if claim.id in lost:
                self._outcomes.add(claim, call, Settlement(Superseded(claim.id)))
        return [one for one in group if one[0].id not in lost]

    def _run_calls(self) -> None:
        began, number = time.monotonic(), 0
        one = self._in_flight.start_next()
        while one is not None:
            number += 1
            one = self._in_flight.start_next(self._run_call(*one))
        seconds = time.monotonic() - began
        if number:
            self._in_flight.seconds_in_calls += seconds
            self._sizes.to_settle(self._in_flight.settle_within).note(number, seconds)

    def _run_call(self, claim: Claim, call: PreparedCall) -> FinishedCall | None:
        """The call, finished; None if it was not started."""
        began = time.monotonic()
        try:
            answer = run_call(self._context, claim, call, None)
        except NotStarted:
            with self._in_flight.lock():
                self._in_flight.running = None
                self._unstarted.append(claim)
            return None
        return finish(claim, call, answer, time.monotonic() - began)

    # From one group to the next.

    def _commit_and_lock_next(self) -> bool:
        """Commit this group and lock the next one in one round trip. Returns whether the next group is locked.

        Does nothing if an outcome is not a success, or if no locked group follows.
        """
        in_flight = self._in_flight
        with in_flight.lock():
            if not self._can_lock_next():
                return False
            finished, in_flight.finished = in_flight.finished, []
            group = self._next_group()
            in_flight.running = in_flight.first_finished_at = None
            is_written, lost = commit_and_lock(self._context, finished, [claim for claim, _ in group])
            self._is_locked = lost is not None
            in_flight.schedule(group if lost is None else self._without_lost(lost, group))
        if is_written:
            self._outcomes.add_succeeded([one.claim for one in finished])
        else:
            self._add_each(write_each(self._context, finished))
        self._outcomes.report()
        return self._is_locked

    def _can_lock_next(self) -> bool:
        in_flight = self._in_flight
        if not (self._is_locked and in_flight.finished and in_flight.waiting):
            return False
        if in_flight.is_stopping() or not self._is_short():
            return False
        following = in_flight.waiting[0][1]
        is_alike = following.is_locked and self._is_grouped(following)
        have_succeeded = not self._unstarted and all(one.decision is SUCCESS for one in in_flight.finished)
        return is_alike and have_succeeded and chains(self._context.lane.connection)

    # Settling.

    def _settle(self) -> None:
        """Commit the finished calls, and report them. Calls that wait for too long are released."""
        in_flight = self._in_flight
        with in_flight.lock():
            in_flight.running, in_flight.first_finished_at, self.is_open = None, None, False
            unstarted = self._unstarted + ([] if self._is_short() else in_flight.remove_waiting())
            hooked, finished = self._split(in_flight.finished)
            in_flight.finished, self._unstarted = [], []
            is_written = self._write_group(finished, unstarted)
        if not is_written:
            self._add_each(write_each(self._context, finished))
            release_unstarted(self._context, unstarted)
        self._outcomes.add_released(unstarted)
        self._add_each(write_hooked(self._context, hooked))
        self._outcomes.report()

    def _split(self, finished: list[FinishedCall]) -> tuple[list[FinishedCall], list[FinishedCall]]:
        """The calls for which the error hook is to be called, each in a transaction of its own, and the others."""
        # Most have succeeded, and need not be asked about.
        hooked = [one for one in finished if one.decision is not SUCCESS and is_hooked(self._context, one)]
        return hooked, [one for one in finished if one not in hooked] if hooked else finished

    def _is_short(self) -> bool:
        """Whether so few calls wait that this lane can run them soon."""
        return len(self._in_flight.waiting) <= self._sizes.to_claim.number and not self._in_flight.is_stopping()

    def _write_group(self, finished: list[FinishedCall], unstarted: list[Claim]) -> bool:
        was_locked, self._is_locked = self._is_locked, False
        if not (finished or unstarted or was_locked):
            return True
        if not write_group(self._context, finished, unstarted):
            return False
        self._add_committed(finished)
        return True

    def _add_committed(self, finished: list[FinishedCall]) -> None:
        self._outcomes.add_succeeded([one.claim for one in finished if one.decision is SUCCESS])
        for one in finished:
            if one.decision is not SUCCESS:
                self._outcomes.add(one.claim, one.call, one.settlement)

    def _add_each(self, settled: Iterable[tuple[FinishedCall, Settlement | None]]) -> None:
        for one, settlement in settled:
            if settlement is not None:
                self._outcomes.add(one.claim, one.call, settlement)

    # From the watchdog's thread, on this lane's connection, while its own thread is in the call.

    def detach_running(self, *, stays_locked: bool = True) -> bool:
        """Commit everything but the running call: the finished outcomes, and the release of the calls that wait. The
        running call's lease is extended, and its row locked again if it `stays_locked`.

        Returns whether that was done. If not, the finished outcomes are written as soon as the running call ends.
        """
        in_flight, lane = self._in_flight, self._context.lane
        if in_flight.running is None:
            return True
        running = in_flight.running.claim
        not_started = list(self._unstarted)  # nobody is told of these but here
        self._unstarted += in_flight.remove_waiting()
        try:
            fenced_writes.extend_lease(lane.connection, self._context.table, running, self._lease)
            hooked, finished = self._split(in_flight.finished)
            commit_group(self._context, finished, self._unstarted)
            self._add_committed(finished)
            self._outcomes.add_released(not_started)
            in_flight.finished, self._unstarted = [], []
            self._is_locked = self._is_locked and stays_locked
            if self._is_locked:
                lane.connection.begin()
                fenced_writes.lock_claims(lane.connection, self._context.table, [running], LOCKED_LIMIT)
        except Exception as problem:
            logger.warning("a long call still holds up others: %s", describe(problem).summary)
            lane.drop_connection()
            self._is_locked = False
            return False
        self._add_each(write_hooked(self._context, hooked))
        return True
