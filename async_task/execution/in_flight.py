"""The calls of a lane from their claim to the commit of their outcomes: those that wait, the one that runs, and those
that have finished.

1. `CommitRules` say how the outcome of a call is committed: with which others, and how soon.
2. `finish` decides about the attempt of a call that has returned or raised.
3. `InFlight` holds the calls. The lane's thread takes calls from it. The watchdog reads it from another thread, and may
   remove calls that wait. Both hold the lock.
"""

import datetime as dt
import enum
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from async_task.database.answers import Raised
from async_task.database.greenlets import holding
from async_task.database.lanes import Lane
from async_task.error_text import Failure, quotes_nothing
from async_task.errors import AsyncTaskError
from async_task.execution.prepared_call import PreparedCall
from async_task.outcomes import (
    SUCCESS,
    Canceled,
    Decision,
    Expired,
    Failed,
    Outcome,
    Retried,
    Standing,
    Succeeded,
    decide,
)
from async_task.queue.claim import Claim
from async_task.queue.final_failures import FinalFailure
from async_task.schema.states import Status

DECIDED_BY_HOOK = "its error hook decided so"
ClaimedCall = tuple[Claim, PreparedCall]


class CommitMode(enum.Enum):
    """GROUPED: with the outcomes of other calls that take no session. SHARED: with the writes and outcomes of other
    calls of the same method. ALONE: by itself."""

    GROUPED, SHARED, ALONE = range(3)


@dataclass(frozen=True, slots=True)
class CommitRules:
    """The rules of one worker. `settle_within`: seconds after which an outcome is committed, unless its target says
    otherwise; 0: each in a commit of its own. `each_alone`: no calls are grouped."""

    settle_within: float
    each_alone: bool = False

    def seconds(self, call: PreparedCall) -> float:
        """Within how many seconds after its end the outcome of this call is committed."""
        own = call.method.policy.settle_within
        return self.settle_within if own is None else own.total_seconds()

    def mode(self, call: PreparedCall) -> CommitMode:
        """A call is grouped if it takes no session, no event loop and has no limits of its own. Of calls that take a
        session, some share a transaction because their target says `batch=`."""
        if self.each_alone:
            return CommitMode.ALONE
        policy = call.method.policy
        if call.session_class is not None:
            can_share = (policy.batch or 1) > 1 and self.seconds(call) > 0
            return CommitMode.SHARED if can_share else CommitMode.ALONE
        has_limits = call.timeout is not None or bool(policy.isolate)
        return CommitMode.ALONE if call.method.signature.is_async or has_limits else CommitMode.GROUPED


class Settlement(NamedTuple):
    """The outcome of an attempt, and the error that its target raised. `error` is None if it raised none, or if
    another worker has the claim now. `final`: what to report of a final failure. `given_up`: of an operation whose poll
    has given it up. `call`: what has raised the error."""

    outcome: Outcome
    error: BaseException | None = None
    final: FinalFailure | None = None
    given_up: FinalFailure | None = None
    call: PreparedCall | None = None


class FinishedCall(NamedTuple):
    """A claim, its call, and the decision that is to be written. `chosen`: the outcome that the user's error hook has
    chosen instead."""

    claim: Claim
    call: PreparedCall
    decision: Decision
    chosen: Outcome | None = None

    @property
    def status(self) -> Status:
        """The status that is written."""
        return self.decision.status if self.chosen is None else _STATUS[type(self.chosen)]

    @property
    def failure(self) -> Failure | None:
        """The error as text to store, without secrets."""
        return None if self.decision.error is None else self.call.describe(self.decision.error)

    @property
    def settlement(self) -> Settlement:
        """What to report once the decision is committed."""
        claim, call, decision, chosen = self
        if chosen is None and decision.status is Status.SUCCEEDED:
            return Settlement(Succeeded(claim.id))
        outcome = chosen or self._decided()
        return Settlement(outcome, decision.error, self._final(outcome), self._given_up, call)

    @property
    def _given_up(self) -> FinalFailure | None:
        reason = self.decision.given_up
        return None if reason is None else FinalFailure.of_claim(self.claim, Failed(self.claim.id, reason), reason)

    def _final(self, outcome: Outcome) -> FinalFailure | None:
        claim, call, decision, chosen = self
        if not isinstance(outcome, (Failed, Expired)):
            return None
        told = None if decision.error is None else call.describe_for_log(decision.error)
        reason = decision.reason if chosen is None else self._reason_of_hook(outcome.reason)
        return FinalFailure.of_claim(claim, outcome, reason, told)

    def _reason_of_hook(self, stored: str) -> str:
        """Why it ended, without the value of any argument. `stored`: the `last_error` that the hook has left: its
        reason, or the error if it gave none."""
        failure = self.failure
        is_given = failure is None or not stored.startswith(failure.summary)
        reason = self.call.reason_for_log(stored) if is_given else ""
        return f"{DECIDED_BY_HOOK}: {reason}" if reason else DECIDED_BY_HOOK

    def _decided(self) -> Outcome:
        claim, _, decision, _ = self
        failure = self.failure
        summary = None if failure is None else failure.summary
        if decision.status is Status.FAILED:
            return Failed(claim.id, ": ".join(part for part in (decision.reason, summary) if part))
        if decision.status is Status.EXPIRED:
            return Expired(claim.id, decision.reason)
        assert decision.after is not None
        return Retried(claim.id, decision.after, f"{summary} ({decision.reason})" if decision.reason else summary)


_STATUS: dict[type[Outcome], Status] = {
    Failed: Status.FAILED,
    Expired: Status.EXPIRED,
    Canceled: Status.CANCELED,
    Retried: Status.PENDING,
}


def finish(claim: Claim, call: PreparedCall, answer: object, seconds: float) -> FinishedCall:
    """Decide about the attempt of a call that took `seconds`. `answer`: what it returned, or `Raised`."""
    if answer is None:  # so do most calls: nothing about the row matters then
        return FinishedCall(claim, call, SUCCESS)
    elapsed = dt.timedelta(seconds=seconds)
    left = None if claim.left is None else claim.left - elapsed
    standing = Standing(claim.age + elapsed, left, claim.num_errors, claim.max_attempts)
    answer = answer.error if isinstance(answer, Raised) else answer
    try:
        decision = decide(answer, standing, call.retry, kinds=call.method.policy.error_kinds)
    except Exception as fault:  # of ours: undecided, the call would be made again and again, uncharged
        said = f"what becomes of it could not be decided: {type(fault).__name__}"
        decision = decide(quotes_nothing(AsyncTaskError(said)), standing, call.retry)
    return FinishedCall(claim, call, decision)


class RunningCall(NamedTuple):
    """The call that runs, `since` when (`time.monotonic`)."""

    claim: Claim
    since: float


class InFlight:
    """`settle_within`: seconds after which finished calls are committed, even if others wait. `is_stopping`: once it
    returns True, no further call is started."""

    def __init__(
        self, lane: Lane, calls: Iterable[ClaimedCall], settle_within: float, is_stopping: Callable[[], bool]
    ) -> None:
        self._lane = lane
        self.is_stopping = is_stopping
        self.settle_within = settle_within
        self.waiting = deque(calls)
        self.following: deque[ClaimedCall] = deque()
        """The next call, which no longer waits: its row is locked with the commit of the call before, where that is
        possible."""
        self.running: RunningCall | None = None
        self.finished: list[FinishedCall] = []
        self.first_finished_at: float | None = None
        """When the first call finished whose outcome is not committed (`time.monotonic`)."""
        self.seconds_in_calls = 0.0
        """Without the time of the database: smaller batches would make a slow database slower still."""
        self._num_scheduled = 0
        self._lock = threading.Lock()

    def lock(self) -> AbstractContextManager[object]:
        """For the lane's own thread. Inside of `lane.run`."""
        # On an event loop it must not block: the thread that holds the lock may need that loop.
        return holding(self._lock) if self._lane.is_async else self._lock

    @contextmanager
    def try_lock(self, timeout: float) -> Iterator[bool]:
        """For other threads: whether the lock was acquired within `timeout` seconds. If not, the lane waits for the
        database."""
        is_acquired = self._lock.acquire(timeout=timeout) if timeout else self._lock.acquire(blocking=False)
        try:
            yield is_acquired
        finally:
            if is_acquired:
                self._lock.release()

    def schedule(self, calls: list[ClaimedCall]) -> None:
        """Let `start_next` start these calls, and then no more."""
        self.waiting.extendleft(reversed(calls))
        self._num_scheduled = len(calls)

    def start_next(self, finished: FinishedCall | None = None) -> ClaimedCall | None:
        """Note that the call before has `finished`, in any case, and return the next scheduled one, which is now the
        running one. None if there is none, if finished calls must be committed first, or if the worker is stopping."""
        with self.lock():
            now = time.monotonic()
            if finished is not None:
                if not self.finished:
                    self.first_finished_at = now
                self.finished.append(finished)
            is_late = self.first_finished_at is not None and now - self.first_finished_at >= self.settle_within
            if not self._num_scheduled or not self.waiting or is_late or self.is_stopping():
                self.running = None
                return None
            self._num_scheduled -= 1
            one = self.waiting.popleft()
            self.running = RunningCall(one[0], now)
            return one

    def choose_following(self, may_follow: Callable[[ClaimedCall], bool]) -> Claim | None:
        """Take the first waiting call, which then is the following one, if it `may_follow`. Returns its claim; None if
        no call is taken."""
        with self.lock():
            if not self.waiting or self.is_stopping() or not may_follow(self.waiting[0]):
                return None
            self.following.append(self.waiting.popleft())
            return self.following[0][0]

    def remove_waiting(self) -> list[Claim]:
        """The claims of all calls that wait, which the caller releases."""
        claims = [claim for claim, _ in self.waiting]
        self.waiting.clear()
        return claims

    def remove_following(self) -> list[Claim]:
        """The claim of the following call, if there is one, which the caller releases."""
        claims = [claim for claim, _ in self.following]
        self.following.clear()
        return claims

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Around a call: add its time to `seconds_in_calls`."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds_in_calls += time.monotonic() - began
