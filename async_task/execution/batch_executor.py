"""Executes a batch: calls that one lane has claimed together, one after the other, on that lane's own connection.

1. Calls that take no session are settled in groups (`group_commit`).
2. Calls of a target that says `batch=` share a transaction with their writes (`shared_transaction`).
3. All others are performed one by one, each in a transaction of its own. Where the next one takes a session too, its
   row is locked in the round trip that commits the one before.
4. A call that takes long is detached from the others by the watchdog: what is finished is committed, what has not
   started is released for other lanes, and the call continues alone, with its row locked.
"""

import datetime as dt
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property, partial
from typing import Protocol

from async_task.execution.adaptive import BatchSizes
from async_task.execution.follow_up import CommittedOutcomes, OutcomeSink, has_follow_up
from async_task.execution.group_commit import GroupCommit
from async_task.execution.in_flight import ClaimedCall, CommitMode, CommitRules, InFlight, RunningCall
from async_task.execution.prepared_call import ExecutionContext, PreparedCall
from async_task.execution.release import release_unstarted
from async_task.execution.shared_transaction import SharedTransaction
from async_task.queue.claim import Claim

LONGEST_ALONE = 0.05
"""Seconds for which a call that is performed alone may hold up the calls behind it on its lane."""
DETACH_RETRY = 1.0
"""Seconds after which a call is detached again if that failed: an unreachable database is not asked at each tick."""
LONGEST_AT_DATABASE = 1.0
"""Seconds for which an abandoned lane may wait for the database before its connection is closed."""
Release = Callable[[list[Claim]], None]
"""Releases claims on a connection that is not this lane's."""


class BatchOwner(OutcomeSink, Protocol):
    """What a batch needs of the worker thread that runs it."""

    def perform_alone(self, context: ExecutionContext, claim: Claim, call: PreparedCall) -> None:
        """Perform a call that shares nothing with others, to its outcome."""

    def is_stopping(self) -> bool:
        """Whether no further call may start."""
        ...

    def is_watched(self) -> bool:
        """Whether a function of the user's is called after each commit."""
        ...


class BatchExecutor:
    """One batch of one lane."""

    def __init__(
        self,
        context: ExecutionContext,
        calls: Iterable[ClaimedCall],
        sizes: BatchSizes,
        rules: CommitRules,
        lease: dt.timedelta,
        owner: BatchOwner,
    ) -> None:
        self._in_flight = InFlight(context.lane, calls, rules.settle_within, owner.is_stopping)
        self._claims = [claim for claim, _ in self._in_flight.waiting]
        self._outcomes = CommittedOutcomes(context, owner)
        self._group_commit = GroupCommit(context, self._in_flight, sizes, rules, lease, self._outcomes)
        self._context = context
        self._sizes = sizes
        self._rules = rules
        self._owner = owner
        self._shared: SharedTransaction | None = None
        self._undone: deque[ClaimedCall] = deque()
        self._detach_failed_at = -DETACH_RETRY

    def execute(self) -> None:
        """Settle or release all calls of the batch. Inside of `lane.run`."""
        in_flight = self._in_flight
        number = len(in_flight.waiting)
        while (in_flight.waiting or in_flight.following) and not in_flight.is_stopping():
            if in_flight.following:
                self._perform_alone(in_flight.following)
                continue
            match self._rules.mode(in_flight.waiting[0][1]):
                case CommitMode.GROUPED:
                    self._group_commit.run()
                case CommitMode.SHARED:
                    self._run_shared()
                case CommitMode.ALONE:
                    self._perform_alone(in_flight.waiting)
        release_unstarted(self._context, self.take_unstarted())
        self._sizes.to_claim.note(number, in_flight.seconds_in_calls)

    def take_unstarted(self) -> list[Claim]:
        """Take the claims of calls that were not started; the caller releases them. Inside of `lane.run`."""
        in_flight, lane = self._in_flight, self._context.lane
        with in_flight.lock():
            unstarted = in_flight.remove_following() + in_flight.remove_waiting()
        if lane.transaction is not None:  # it holds the lock of a call that is not started
            lane.transaction.close()
            lane.transaction = None
        return unstarted

    @cached_property
    def _timed_context(self) -> ExecutionContext:
        return replace(self._context, calling=self._in_flight.timing)

    @cached_property
    def _alone_context(self) -> ExecutionContext:
        return replace(self._timed_context, following=self._choose_following)

    # In a shared transaction.

    def _run_shared(self) -> None:
        in_flight = self._in_flight
        first = in_flight.waiting[0][1]
        in_flight.settle_within = self._rules.seconds(first)
        self._schedule_alike(first)
        shared = self._shared = SharedTransaction(self._timed_context, first.limit, self._context.isolation_of(first))
        try:
            while (one := in_flight.start_next()) is not None and shared.run_call(*one):
                if shared.finished and in_flight.first_finished_at is None:
                    in_flight.first_finished_at = time.monotonic()
            shared.finish(self._outcomes)
        except BaseException:
            shared.roll_back()
            raise
        with in_flight.lock():
            in_flight.running = in_flight.first_finished_at = self._shared = None
            self._undone.extend(shared.undone)
        self._outcomes.report()
        while self._undone:
            self._perform_alone(self._undone)

    def _schedule_alike(self, first: PreparedCall) -> None:
        """Schedule calls of the same method and time limit, as many as may share a transaction."""
        in_flight, maximum = self._in_flight, first.method.policy.batch or 1
        with in_flight.lock():
            same = (first.method, first.limit)
            alike = [one for one in in_flight.waiting if (one[1].method, one[1].limit) == same][:maximum]
            ids = {claim.id for claim, _ in alike}
            in_flight.waiting = deque(one for one in in_flight.waiting if one[0].id not in ids)
            in_flight.schedule(alike)

    # Alone.

    def _perform_alone(self, calls: deque[ClaimedCall]) -> None:
        """Perform the first of these calls, unless all were released meanwhile."""
        in_flight = self._in_flight
        with in_flight.lock():
            if not calls:
                return
            claim, call = calls.popleft()
            running = in_flight.running = RunningCall(claim, time.monotonic())
        before = in_flight.seconds_in_calls
        try:
            self._owner.perform_alone(self._alone_context, claim, call)
        finally:
            if in_flight.seconds_in_calls == before:  # it ran in a child process, or in a job of the user's own
                in_flight.seconds_in_calls += time.monotonic() - running.since
            with in_flight.lock():
                in_flight.running = None

    def _choose_following(self, claim: Claim, call: PreparedCall) -> Claim | None:
        """The next call, if its row may be locked with the commit of this one: nothing that takes long, or that uses
        the database, follows the commit."""
        rules, context = self._rules, self._context
        if self._undone or rules.each_alone or self._owner.is_watched() or has_follow_up(context, claim):
            return None
        limits = (call.limit, context.isolation_of(call))

        def may_follow(one: ClaimedCall) -> bool:
            following = one[1]
            if rules.mode(following) is not CommitMode.ALONE or following.method.policy.isolate:
                return False
            is_alike = (following.limit, context.isolation_of(following)) == limits
            return is_alike and following.is_locked and following.session_class is not None

        return self._in_flight.choose_following(may_follow)

    # From other threads.

    def is_overdue(self, now: float) -> bool:
        """Whether the running call takes so long that others must not wait for it. `now`: `time.monotonic()`."""
        if now - self._detach_failed_at < DETACH_RETRY:
            return False
        in_flight, running = self._in_flight, self._in_flight.running
        longest = max(in_flight.settle_within, 0.001) if self._group_commit.is_open else LONGEST_ALONE
        return running is not None and now - running.since > longest and bool(in_flight.finished or in_flight.waiting)

    def detach_running(self, release: Release) -> list[Claim]:
        """Detach the running call from the others if it is overdue. Returns the claims that were released."""
        with self._in_flight.try_lock(0) as is_acquired:
            if not is_acquired or not self.is_overdue(time.monotonic()):
                return []
            if self._group_commit.is_open:
                unstarted = [claim for claim, _ in self._in_flight.waiting]
                if not self._context.lane.run_during_call(self._group_commit.detach_running):
                    self._detach_failed_at = time.monotonic()
                return unstarted
            unstarted = self._in_flight.remove_waiting()
        release(unstarted)
        return unstarted

    def abandon(self, release: Release) -> list[Claim]:
        """Leave the running call to itself: its outcome is not written.

        Returns the claims that the caller must release: the running call's, and those of calls that are undone with it.
        Some may be settled by then.
        """
        in_flight, lane = self._in_flight, self._context.lane
        with in_flight.try_lock(LONGEST_AT_DATABASE) as is_acquired:
            if not is_acquired:  # the lane waits for the database, perhaps for a lock
                lane.disconnect()
                return self._claims
            following = in_flight.remove_following()
            begun = {} if in_flight.running is None else {in_flight.running.claim.id: in_flight.running.claim}
            if self._group_commit.holds_others:
                lane.run_during_call(partial(self._group_commit.detach_running, stays_locked=False))
            elif begun or following:
                lane.disconnect_call()
            if self._shared is not None:
                begun |= {claim.id: claim for claim in self._shared.abandon()}
            begun |= {claim.id: claim for claim, _ in self._undone}
            self._undone.clear()
            unstarted = following + in_flight.remove_waiting()
        if unstarted:
            release(unstarted)
        return list(begun.values())
