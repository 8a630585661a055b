"""A handful: attempts that one lane has claimed together, and performs one after the other.

1. Calls that need no session are made together (`together`).
2. Calls of a target that says `batch=` share a transaction with their writes (`shared_transaction`).
3. All others are performed one by one, each with a transaction of its own.
4. Whoever watches the lane may `cut` a call that takes long off from the rest: what is finished is written, what is
   not started is given back for other lanes, and the call goes on alone, under its lock.
"""

import datetime as dt
import enum
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from async_task.database.transactions import retry_transient
from async_task.execution.adaptive import BatchSizes
from async_task.execution.call import ExecutionContext, PreparedCall
from async_task.execution.group_commit import GroupCommit
from async_task.execution.in_flight import Ended, InFlight, Reports, Running, Waiting
from async_task.execution.shared_transaction import SharedTransaction
from async_task.outcomes import Outcome, Succeeded
from async_task.queue import fenced_writes
from async_task.queue.claim import Claim

LONGEST_ALONE = 0.05
"""Seconds after which a call that is performed alone no longer keeps what waits behind it on its lane."""
AFTER_A_FAILED_CUT = 1.0
"""Seconds until a call is tried to be cut off again: a database that is away is not asked at each tick."""
LONGEST_AT_DATABASE = 1.0
"""Seconds until a lane that does not come back from the database is cut off from it, when it is abandoned."""
Alone = Callable[[ExecutionContext, Claim, PreparedCall], Outcome | None]


class Way(enum.Enum):
    """How a call is performed."""

    TOGETHER, SHARED, ALONE = range(3)


class BatchExecutor:
    """`way`: how a call is to be performed; `alone` performs a claim that goes alone, on the site that it is given. Of
    those that were written with others, after the commit: `succeeded(claims)` is told of most, and `ended(claim, call,
    settled)` of the rest, one by one. `stop`: once it answers True, nothing further is started."""

    def __init__(
        self,
        context: ExecutionContext,
        calls: Iterable[Waiting],
        sizes: BatchSizes,
        lease: dt.timedelta,
        settle_within: float,
        *,
        way: Callable[[PreparedCall], Way],
        alone: Alone,
        succeeded: Callable[[list[Claim]], None],
        ended: Ended,
        stop: Callable[[], bool],
    ) -> None:
        self._in_flight = InFlight(context.lane, calls, settle_within, stop)
        self._claims = [claim for claim, _ in self._in_flight.waiting]
        self._reports = Reports(succeeded, ended)
        self._group_commit = GroupCommit(
            context, self._in_flight, sizes, lease, self._reports,
            goes_along=lambda call: way(call) is Way.TOGETHER, within=self._within,
        )  # fmt: skip
        self._context = context
        self._timed_context = replace(context, calling=self._in_flight.timing)
        self._sizes = sizes
        self._settle_within = settle_within
        self._way = way
        self._alone = alone
        self._shared: SharedTransaction | None = None
        self._undone: deque[Waiting] = deque()
        self._cut_failed_at = -AFTER_A_FAILED_CUT

    def perform(self) -> None:
        """Until nothing of it is left: settled, or given back. Inside of `lane.run`."""
        in_flight = self._in_flight
        number = len(in_flight.waiting)
        while in_flight.waiting and not in_flight.stop():
            match self._way_of(in_flight.waiting[0][1]):
                case Way.TOGETHER:
                    self._group_commit.perform()
                case Way.SHARED:
                    self._perform_in_one_transaction()
                case Way.ALONE:
                    self._perform_alone(in_flight.waiting)
        if unstarted := self.take_unstarted():
            retry_transient(lambda: fenced_writes.release_claims(self._context.engine, self._context.table, unstarted))
        self._sizes.to_claim.note(number, in_flight.in_calls)

    def take_unstarted(self) -> list[Claim]:
        """Take the claims that were not started; the caller releases them. Inside of `lane.run`."""
        with self._in_flight.guarded():
            return self._in_flight.take_all_waiting()

    def _way_of(self, call: PreparedCall) -> Way:
        way = self._way(call)
        # With a commit for each outcome there is nothing to share.
        return Way.ALONE if way is Way.SHARED and not self._within(call) else way

    def _within(self, call: PreparedCall) -> float:
        said = call.method.policy.settle_within
        return self._settle_within if said is None else said.total_seconds()

    # From other threads.

    def is_overdue(self, now: float) -> bool:
        """Whether its call takes so long that others should not wait for it."""
        if now - self._cut_failed_at < AFTER_A_FAILED_CUT:
            return False
        in_flight, running = self._in_flight, self._in_flight.running
        longest = max(in_flight.within, 0.001) if self._group_commit.is_open else LONGEST_ALONE
        return running is not None and now - running.since > longest and bool(in_flight.called or in_flight.waiting)

    def cut(self, aside: Callable[[list[Claim]], None]) -> list[Claim]:
        """Cut the running call off from the rest. `aside` gives claims back on a connection that is not this lane's.
        Answers what was given back."""
        with self._in_flight.guarded_from_outside(0) as is_mine:
            if not is_mine or not self.is_overdue(time.monotonic()):
                return []
            if self._group_commit.is_open:
                unstarted = [claim for claim, _ in self._in_flight.waiting]
                if not self._context.lane.run_during_call(self._group_commit.cut_off):
                    self._cut_failed_at = time.monotonic()
                return unstarted
            unstarted = self._in_flight.take_all_waiting()
        aside(unstarted)
        return unstarted

    def abandon(self, aside: Callable[[list[Claim]], None]) -> list[Claim]:
        """Let go of the running call: its outcome will not be written. Answers its claim, and those of calls that are
        undone with it, which are to be given back; those that are settled by then stand no longer. `aside` as for
        `cut`."""
        in_flight = self._in_flight
        with in_flight.guarded_from_outside(LONGEST_AT_DATABASE) as is_mine:
            if not is_mine:  # it waits there, perhaps for somebody's lock
                self._context.lane.disconnect()
                return self._claims
            begun = {} if in_flight.running is None else {in_flight.running.claim.id: in_flight.running.claim}
            if self._group_commit.holds_others:
                self._context.lane.run_during_call(partial(self._group_commit.cut_off, locks=False))
            elif begun:
                self._context.lane.disconnect_call()
            if self._shared is not None:
                begun |= {claim.id: claim for claim in self._shared.abandon()}
            begun |= {claim.id: claim for claim, _ in self._undone}
            self._undone.clear()
            unstarted = in_flight.take_all_waiting()
        if unstarted:
            aside(unstarted)
        return list(begun.values())

    # In one transaction with their writes.

    def _perform_in_one_transaction(self) -> None:
        in_flight = self._in_flight
        first = in_flight.waiting[0][1]
        in_flight.within = self._within(first)
        self._offer_alike(first)
        shared = self._shared = SharedTransaction(self._timed_context, first.limit)
        try:
            while (one := in_flight.next()) is not None and shared.perform(*one):
                if shared.called and in_flight.held_since is None:
                    in_flight.held_since = time.monotonic()
            ended = shared.end()
        except BaseException:
            shared.break_off()
            raise
        with in_flight.guarded():
            in_flight.running = in_flight.held_since = self._shared = None
            self._undone.extend(shared.undone)
        for claim, call, result in ended:
            if isinstance(result.outcome, Succeeded):
                self._reports.succeeded.append(claim)
            else:
                self._reports.ended.append((claim, call, result))
        self._reports.tell()
        while self._undone:
            self._perform_alone(self._undone)

    def _offer_alike(self, first: PreparedCall) -> None:
        """Calls of the same method come first, as many as may share a transaction."""
        in_flight, most = self._in_flight, first.method.policy.batch or 1
        with in_flight.guarded():
            alike = [one for one in in_flight.waiting if one[1].method is first.method][:most]
            chosen = {claim.id for claim, _ in alike}
            in_flight.waiting = deque(one for one in in_flight.waiting if one[0].id not in chosen)
            in_flight.offer(alike)

    # Alone.

    def _perform_alone(self, calls: deque[Waiting]) -> None:
        """The first of these; unless it was given back meanwhile."""
        in_flight = self._in_flight
        with in_flight.guarded():
            if not calls:
                return
            claim, call = calls.popleft()
            running = in_flight.running = Running(claim, time.monotonic())
        before = in_flight.in_calls
        try:
            self._alone(self._timed_context, claim, call)
        finally:
            if in_flight.in_calls == before:  # it was made elsewhere, in a child or by a job of the user's own
                in_flight.in_calls += time.monotonic() - running.since
            with in_flight.guarded():
                in_flight.running = None


def way_of(call: PreparedCall) -> Way:
    """Calls that want neither a session, nor a loop, nor limits of their own are settled together with others; of those
    that take the session, some share a transaction because their target says so."""
    policy = call.method.policy
    if call.session_class is not None:
        return Way.SHARED if (policy.batch or 1) > 1 else Way.ALONE
    has_limits = call.timeout is not None or bool(policy.isolate)
    return Way.ALONE if call.method.signature.is_async or has_limits else Way.TOGETHER
