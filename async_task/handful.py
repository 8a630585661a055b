"""A handful: attempts that one lane has claimed together, and performs one after the other.

1. Calls that need no session are made together: their rows are locked (or their leases kept), one call follows the
   other, and all outcomes are written in one commit, at the latest `settle_within` after the first of them.
2. Calls of a target that says `batch=` share a transaction with their writes.
3. All others are performed one by one, each with a transaction of its own.
4. Whoever watches the lane may `cut` a call that takes long off from the rest: what is finished is written, what is
   not started is given back for other lanes, and the call goes on alone, under its lock.
"""

import datetime as dt
import enum
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from async_task import transactions
from async_task.calls import PreparedCall, make
from async_task.claims import Claim
from async_task.failures import describe
from async_task.fence import passing_error
from async_task.outcomes import SUCCESS, Outcome, Succeeded, Superseded
from async_task.policies import LOCKED_LIMIT
from async_task.portions import Portions
from async_task.settling import Called, Settled, decided, failure_of, insist, park, settle_alone, settled
from async_task.shared_transaction import SharedTransaction
from async_task.site import Site
from async_task.transactions import Written

logger = logging.getLogger("async_task")
LONGEST_ALONE = 0.05
"""Seconds after which a call that is performed alone no longer keeps what waits behind it on its lane."""
AFTER_A_FAILED_CUT = 1.0
"""Seconds until a call is tried to be cut off again: a database that is away is not asked at each tick."""
Ended = Callable[[Claim, PreparedCall, Settled], None]
Alone = Callable[[Site, Claim, PreparedCall], Outcome | None]


class Way(enum.Enum):
    """How a call is performed."""

    TOGETHER, SHARED, ALONE = range(3)


class Handful:
    """`way`: how a call is to be performed; `alone` performs a claim that goes alone, on the site that it is given. Of
    those that were written with others, after the commit: `succeeded(claims)` is told of most, and `ended(claim, call,
    settled)` of the rest, one by one. `stop`: once it answers True, nothing further is started."""

    def __init__(
        self,
        site: Site,
        calls: Iterable[tuple[Claim, PreparedCall]],
        portions: Portions,
        lease: dt.timedelta,
        settle_within: float,
        *,
        way: Callable[[PreparedCall], Way],
        alone: Alone,
        succeeded: Callable[[list[Claim]], None],
        ended: Ended,
        stop: Callable[[], bool],
    ) -> None:
        self._site = site
        self._timed_site = replace(site, calling=self._timing)
        self._portions = portions
        self._lease = lease
        self._settle_within = self._within = settle_within
        self._way = way
        self._alone = alone
        self._tell_succeeded = succeeded
        self._ended = ended
        self._stop = stop
        self._waiting = deque(calls)
        self._called: list[Called] = []
        self._succeeded: list[Claim] = []
        self._written: list[tuple[Claim, PreparedCall, Settled]] = []
        self._unstarted: list[Claim] = []
        self._shared: SharedTransaction | None = None
        self._undone: deque[tuple[Claim, PreparedCall]] = deque()
        self._running: Claim | None = None
        self._since = self._first = 0.0
        self._in_calls = 0.0
        """Seconds. What the database takes is not counted: if it is slow, smaller portions make it slower."""
        self._left = 0
        self._cut_failed_at = -AFTER_A_FAILED_CUT
        self._is_together = False
        self._is_locked = False
        self._guard = threading.Lock()

    def perform(self) -> None:
        """Until nothing of it is left: settled, or given back. Inside of `lane.run`."""
        number = len(self._waiting)
        while self._waiting and not self._stop():
            match self._way_of(self._waiting[0][1]):
                case Way.TOGETHER:
                    self._perform_together()
                case Way.SHARED:
                    self._perform_in_one_transaction()
                case Way.ALONE:
                    self._perform_alone(self._waiting)
        with self._guarded():
            unstarted = self._take_all_waiting()
        self._give_back(unstarted)
        self._portions.to_claim.note(number, self._in_calls)

    def _way_of(self, call: PreparedCall) -> Way:
        way = self._way(call)
        # With a commit for each outcome there is nothing to share.
        return Way.ALONE if way is Way.SHARED and not self._settle_within_of(call) else way

    def _guarded(self) -> AbstractContextManager[object]:
        lane = self._site.lane
        return lane.guarded(self._guard) if lane.is_async else self._guard

    def is_overdue(self, now: float) -> bool:
        """Whether its call takes so long that others should not wait for it. Asked from another thread."""
        if now - self._cut_failed_at < AFTER_A_FAILED_CUT:
            return False
        longest = max(self._within, 0.001) if self._is_together else LONGEST_ALONE
        return self._running is not None and now - self._since > longest and bool(self._called or self._waiting)

    def cut(self, aside: Callable[[list[Claim]], None]) -> list[Claim]:
        """Cut the running call off from the rest, from another thread. `aside` gives claims back on a connection that
        is not this lane's. Answers what was given back."""
        if not self._guard.acquire(blocking=False):
            return []  # its lane is at the database, and not in a call
        try:
            if not self.is_overdue(time.monotonic()):
                return []
            unstarted = [claim for claim, _ in self._waiting]
            if self._is_together:
                self._site.lane.meanwhile(self._cut_off)
                return unstarted
            self._waiting.clear()
        finally:
            self._guard.release()
        aside(unstarted)
        return unstarted

    def abandon(self, aside: Callable[[list[Claim]], None]) -> list[Claim]:
        """Let go of the running call, from another thread: its outcome will not be written. Answers its claim, and
        those of calls that are undone with it, which are to be given back. `aside` as for `cut`."""
        if not self._guard.acquire(timeout=1.0):
            return []  # its lane is at the database, and gives back itself what was not begun
        try:
            begun = {} if self._running is None else {self._running.id: self._running}
            if self._is_together and (self._is_locked or self._called):
                self._site.lane.meanwhile(partial(self._cut_off, locks=False))
            elif self._running is not None:
                self._site.lane.sever()
            if self._shared is not None:
                begun |= {claim.id: claim for claim in self._shared.abandon()}
            begun |= {claim.id: claim for claim, _ in self._undone}
            self._undone.clear()
            unstarted = self._take_all_waiting()
        finally:
            self._guard.release()
        if unstarted:
            aside(unstarted)
        return list(begun.values())

    # Together.

    def _perform_together(self) -> None:
        calls = self._open()
        began, number = time.monotonic(), 0
        try:
            for claim, call in calls:
                answer = make(self._site, claim, call, None)
                number += 1
                self._note(claim, call, answer)
        finally:
            took = time.monotonic() - began
            self._settle()
        if number:
            self._in_calls += took
            self._portions.to_settle(self._within).note(number, took)

    def _open(self) -> Iterator[tuple[Claim, PreparedCall]]:
        """Lock the next few, if they want to be locked; then each of them whose turn it is."""
        with self._guarded():
            chosen = self._choose()
            self._is_together, self._is_locked = True, chosen[0][1].is_locked
            if self._is_locked:
                chosen = self._lock(chosen)
            self._waiting.extendleft(reversed(chosen))
            self._left = len(chosen)
        return iter(self._next, None)

    def _choose(self) -> list[tuple[Claim, PreparedCall]]:
        """Calls that are to be locked alike, and written equally soon."""
        first = self._waiting[0][1]
        self._within = self._settle_within_of(first)
        most = self._portions.to_settle(self._within).number
        chosen: list[tuple[Claim, PreparedCall]] = []
        while self._waiting and len(chosen) < most:
            call = self._waiting[0][1]
            is_alike = call.is_locked is first.is_locked and self._settle_within_of(call) == self._within
            if not is_alike or self._way(call) is not Way.TOGETHER:
                break
            chosen.append(self._waiting.popleft())
        return chosen

    def _settle_within_of(self, call: PreparedCall) -> float:
        said = call.method.policy.settle_within
        return self._settle_within if said is None else said.total_seconds()

    def _lock(self, chosen: list[tuple[Claim, PreparedCall]]) -> list[tuple[Claim, PreparedCall]]:
        """Begin, and lock; what was taken from us meanwhile is dropped, and all of it when the database fails us."""
        claims = [claim for claim, _ in chosen]
        try:
            connection = self._site.lane.connection
            connection.begin()
            lost = transactions.lock_all(connection, self._site.table, claims, LOCKED_LIMIT)
        except (DBAPIError, PoolTimeout) as problem:
            self._site.lane.drop_connection()
            self._is_locked = False
            self._refuse(claims, problem)
            return []
        if not lost:
            return chosen
        for claim, call in chosen:
            if claim.id in lost:
                self._written.append((claim, call, Settled(Superseded(claim.id))))
        return [one for one in chosen if one[0].id not in lost]

    def _next(self) -> tuple[Claim, PreparedCall] | None:
        with self._guarded():
            now = time.monotonic()
            is_late = (self._called or (self._shared and self._shared.called)) and now - self._first >= self._within
            if not self._left or not self._waiting or is_late or self._stop():
                self._running = None
                return None
            self._left -= 1
            one = self._waiting.popleft()
            self._running, self._since = one[0], now
            return one

    def _note(self, claim: Claim, call: PreparedCall, answer: object) -> None:
        elapsed = time.monotonic() - self._since
        decision = SUCCESS if answer is None else decided(claim, call, answer, dt.timedelta(seconds=elapsed))
        with self._guarded():
            self._running = None
            if not self._called:
                self._first = time.monotonic()
            self._called.append(Called(claim, call, decision))

    def _settle(self) -> None:
        """Write what was called, and commit; then tell of it."""
        with self._guarded():
            self._running, self._is_together = None, False
            unstarted = [] if self._is_short() else self._take_all_waiting()
            unstarted, self._unstarted = self._unstarted + unstarted, []
            called, self._called = self._called, []
            try:
                self._write(called, unstarted)
                unstarted = []
            except Exception as problem:
                logger.warning("%d outcomes were not written at once: %s", len(called), describe(problem).summary)
                self._site.lane.drop_connection()
            else:
                called = []
            self._is_locked = False
        for left in called:
            self._settle_alone(left)
        self._give_back(unstarted)
        self._tell()

    def _tell(self) -> None:
        succeeded, self._succeeded = self._succeeded, []
        if succeeded:
            self._tell_succeeded(succeeded)
        written, self._written = self._written, []
        for one in written:
            self._ended(*one)

    def _settle_alone(self, one: Called) -> None:
        """What cannot be written holds up no other: its claim is a stray from now on."""
        try:
            self._written.append((one.claim, one.call, settle_alone(self._site, *one)))
        except Exception as problem:
            logger.error("attempt %s: %s", one.claim.id, describe(problem, one.call.secrets).summary)

    def _is_short(self) -> bool:
        """Whether what waits will have its turn so soon that nobody else need be asked."""
        return len(self._waiting) <= self._portions.to_claim.number and not self._stop()

    def _write(self, called: list[Called], unstarted: list[Claim]) -> None:
        """Write and commit, in the transaction that locks, or in one for this. Raises what the database says."""
        if not (called or unstarted or self._is_locked):
            return
        connection = self._site.lane.connection
        transaction = connection.get_transaction() or connection.begin()
        succeeded = [one.claim for one in called if one.decision is SUCCESS]
        others = [one for one in called if one.decision is not SUCCESS]
        written = [Written(one.claim, one.decision, failure_of(one.decision, one.call)) for one in others]
        if not transactions.write_all(connection, self._site.table, succeeded, written, unstarted):
            raise SomebodyElse
        transaction.commit()
        self._succeeded += succeeded
        self._written += ((one.claim, one.call, settled(one.claim, one.call, one.decision)) for one in others)

    def _cut_off(self, *, locks: bool = True) -> None:
        """On this lane's connection, while its thread is in the call."""
        running, lane = self._running, self._site.lane
        if running is None:
            return
        self._unstarted += self._take_all_waiting()
        try:
            transactions.extend(lane.connection, self._site.table, running, self._lease)
            self._write(self._called, self._unstarted)
            self._called, self._unstarted = [], []
            self._is_locked = self._is_locked and locks
            if self._is_locked:
                lane.connection.begin()
                transactions.lock_all(lane.connection, self._site.table, [running], LOCKED_LIMIT)
        except Exception as problem:
            # What was called is written by the lane, as soon as this call is over.
            logger.warning("a long call was not cut off: %s", describe(problem).summary)
            self._cut_failed_at = time.monotonic()
            lane.drop_connection()
            self._is_locked = False

    # In one transaction with their writes.

    def _perform_in_one_transaction(self) -> None:
        first = self._waiting[0][1]
        self._within = self._settle_within_of(first)
        self._choose_alike(first)
        shared = self._shared = SharedTransaction(self._timed_site, first.limit)
        try:
            has_called = False
            while (one := self._next()) is not None and shared.perform(*one):
                if shared.called and not has_called:
                    has_called, self._first = True, time.monotonic()
            ended = shared.end()
        except BaseException:
            shared.break_off()
            raise
        with self._guarded():
            self._running = self._shared = None
            self._undone.extend(shared.undone)
        for claim, call, result in ended:
            if isinstance(result.outcome, Succeeded):
                self._succeeded.append(claim)
            else:
                self._written.append((claim, call, result))
        self._tell()
        while self._undone:
            self._perform_alone(self._undone)

    def _choose_alike(self, first: PreparedCall) -> None:
        """Calls of the same method come first, as many as may share a transaction."""
        most = first.method.policy.batch or 1
        with self._guarded():
            alike = [one for one in self._waiting if one[1].method is first.method][:most]
            chosen = {claim.id for claim, _ in alike}
            others = [one for one in self._waiting if one[0].id not in chosen]
            self._waiting = deque(alike + others)
            self._left = len(alike)

    # Alone.

    def _perform_alone(self, calls: deque[tuple[Claim, PreparedCall]]) -> None:
        """The first of these; unless it was given back meanwhile."""
        with self._guarded():
            if not calls:
                return
            claim, call = calls.popleft()
            self._running, self._since = claim, time.monotonic()
        before = self._in_calls
        try:
            self._alone(self._timed_site, claim, call)
        finally:
            if self._in_calls == before:  # it was made elsewhere, in a child or by a job of the user's own
                self._in_calls += time.monotonic() - self._since
            with self._guarded():
                self._running = None

    @contextmanager
    def _timing(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._in_calls += time.monotonic() - began

    def _take_all_waiting(self) -> list[Claim]:
        unstarted = [claim for claim, _ in self._waiting]
        self._waiting.clear()
        return unstarted

    def _give_back(self, unstarted: list[Claim]) -> None:
        if unstarted:
            insist(lambda: transactions.give_back(self._site.engine, self._site.table, unstarted))

    def _refuse(self, claims: list[Claim], problem: BaseException) -> None:
        """None of these was started: the weather passes, and they go back where they stood; else they are parked."""
        if isinstance(problem, PoolTimeout) or passing_error(problem) is not None:
            self._give_back(claims)
            return
        for claim in claims:
            park(self._site, claim, f"its row could not be locked: {describe(problem).summary}", started=False)


class SomebodyElse(Exception):
    """Somebody else was first with one of the outcomes, at least: each is to be looked at by itself."""


def way_of(call: PreparedCall) -> Way:
    """Calls that want neither a session, nor a loop, nor limits of their own are settled together with others; of those
    that take the session, some share a transaction because their target says so."""
    policy = call.method.policy
    if call.session_class is not None:
        return Way.SHARED if (policy.batch or 1) > 1 else Way.ALONE
    has_limits = call.timeout is not None or bool(policy.isolate)
    return Way.ALONE if call.method.signature.is_async or has_limits else Way.TOGETHER
