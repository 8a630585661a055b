"""What the lanes of a batch have to do: what was due when it began, once, within what it was asked for."""

import datetime as dt
import logging
import threading
import time
from collections import Counter
from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass, field

from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from async_task.database.dialects import locks_neighbours
from async_task.database.driver_errors import transient_error
from async_task.database.lanes import Lane
from async_task.database.transactions import retry_transient
from async_task.error_text import describe
from async_task.outcomes import Expired, Failed, Outcome
from async_task.queue import backlog
from async_task.queue.backlog import Scope
from async_task.queue.claim import Claim, ClaimRequest
from async_task.queue.sweep import SweepReport
from async_task.worker.batch_failures import FinalFailures
from async_task.worker.batch_report import BatchReport, Progress, report_of
from async_task.worker.round_robin import RoundRobin
from async_task.worker.runtime import Runtime
from async_task.worker.start_limit import StartLimit
from async_task.worker.workload import PerformClaim, Workload

logger = logging.getLogger("async_task")
LIMIT_PATIENCE = 10.0
"""Seconds for which a batch waits for a limit that lets nothing start."""
MOST_MISSES = 50
"""How often a queue may seem empty while something in it is due: then somebody has it locked for long."""
MOST_FAILURES = 50
"""How often threads of one batch may fail because of the database."""
PAUSE_AFTER_A_MISS = 0.02
LONGEST_PAUSE = 0.2
"""Seconds until a limited queue is claimed from again."""


@dataclass
class BatchOptions:
    """What a batch is asked for. `limit`: attempts to start at most. `concurrency`: lanes. `deadline`: by
    time.monotonic(), from then on nothing is started. `stop`: when it is set, nothing further is started."""

    limit: int | None = None
    concurrency: int = 1
    scope: Scope = field(default_factory=Scope)
    deadline: float | None = None
    progress: Progress | None = None
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class BatchStart:
    """What was found at the beginning. `began`: by the database's clock; `since`: by time.monotonic(). `paused`: how
    queues are left out. `failures`: those of the sweep, to which those of calls are added."""

    began: dt.datetime
    since: float
    swept: SweepReport
    paused: int
    failures: FinalFailures


class BatchWorkload(Workload):
    """Everything that was due when the batch began. What a thread raises ends the batch (`failure`), but for errors of
    the database."""

    def __init__(
        self,
        runtime: Runtime,
        round_robin: RoundRobin,
        own_job: PerformClaim | None,
        options: BatchOptions,
        start: BatchStart,
    ) -> None:
        super().__init__(runtime, round_robin, own_job, options.concurrency)
        self._options = options
        self._start = start
        self._limit = StartLimit(options.limit)
        self._last_start: dict[str, float] = {}
        self._given_up: set[str] = set()
        self._misses: Counter[str] = Counter()
        self._num_failures = 0
        self._telling = threading.Lock()
        self._due: int | None = None
        self.failure: BaseException | None = None
        self.is_out_of_time = False
        self.has_released_keys = False
        """Whether attempts of order keys may have been released: they may be in other queues."""
        self.is_suspects_turn = False
        """Whether nothing but suspects may be performed now."""

    def is_over(self) -> bool:
        if self._options.deadline is not None and time.monotonic() >= self._options.deadline:
            self.is_out_of_time = True
        return self.is_out_of_time or self.failure is not None or self._options.stop.is_set()

    @property
    def is_spent(self) -> bool:
        """Whether as many have been started as the limit allows."""
        return self._limit.is_spent

    def serves(self, queue: str) -> bool:
        queues = self._options.scope.queues
        return not queues or queue in queues

    @property
    def goes_on(self) -> bool:
        return False  # it leaves what came after it began, and what is more than its limit

    def note_failure(self, error: BaseException, queue: str | None = None) -> None:
        """After an error of the database the queue is requested again: if that stays away, the next claim fails, which
        is patient. Any other error ends the batch."""
        is_transient = isinstance(error, (OperationalError, PoolTimeout)) or transient_error(error) is not None
        with self._guard:
            self._num_failures += 1
            is_passing = is_transient and queue is not None and self._num_failures <= MOST_FAILURES
        if self.failure is None and queue is not None and is_passing:
            logger.warning("a thread of the batch failed and restarts: %s", describe(error).summary)
            self.round_robin.request(queue)
        else:
            self.failure = self.failure or error

    # Claiming.

    def claim(
        self, lane: Lane, queue: str, limit: int, *,
        besides: Sequence[tuple[str, str]] = (), suspects: bool = False, requests_more: bool = True,
    ) -> list[Claim]:  # fmt: skip
        granted = 0 if queue in self._given_up else self._limit.grant(queue, limit)
        if not granted:
            return []
        claims: list[Claim] = []
        try:
            given = {"suspects": suspects, "requests_more": requests_more}
            claims = super().claim(lane, queue, granted, besides=besides, **given)
        except BaseException as error:
            self.failure = self.failure or error
            raise
        finally:
            self._note_claimed(queue, granted, claims)
        if not claims and not besides and locks_neighbours(lane.engine.dialect):
            self._come_again_if_locked(lane, queue, suspects=suspects)
        return claims

    def is_due(self, lane: Lane, queue: str, *, suspects: bool) -> bool:
        """Whether anything in this queue is left to the batch; locked rows count. Inside of `lane.run`."""
        where = (lane.engine, self.runtime.table, [queue], self._start.began, self._options.scope.targets)
        left_out = self.runtime.unknown_calls.left_out()
        return bool(retry_transient(lambda: backlog.with_due(*where, suspects=suspects, left_out=left_out)))

    def may_come_again(self, queue: str) -> bool:
        """Whether a queue may be claimed from again that seemed empty while something in it is due; counts that."""
        with self._guard:
            self._misses[queue] += 1
            return self._misses[queue] <= MOST_MISSES and queue not in self._given_up

    def has_missed(self, queues: list[str]) -> bool:
        """Whether one of these seemed empty more than once since anything was claimed from it."""
        with self._guard:
            return any(self._misses[queue] > 1 for queue in queues)

    def _request(self, queue: str, limit: int, besides: Sequence[tuple[str, str]], *, suspects: bool) -> ClaimRequest:
        return self.runtime.claimer.request(
            queue, limit, began=self._start.began, suspects=suspects, targets=self._options.scope.targets,
            besides=besides, unknown=self.runtime.unknown_calls.left_out(),
        )  # fmt: skip

    def _hold_back(self, lane: Lane, queue: str, seconds: float, *, has_claimed: bool, suspects: bool) -> None:
        """Unless the limit has let nothing start for a while: then the queue is left to the next batch."""
        now = time.monotonic()
        with self._guard:
            last = now if has_claimed else self._last_start.setdefault(queue, now)
            if now - last > LIMIT_PATIENCE:
                self._given_up.add(queue)
                return
        if has_claimed or self.is_due(lane, queue, suspects=suspects):
            super()._hold_back(
                lane, queue, min(seconds, LONGEST_PAUSE), has_claimed=has_claimed, suspects=suspects
            )  # fmt: skip

    def _come_again_if_locked(self, lane: Lane, queue: str, *, suspects: bool) -> None:
        """What SKIP LOCKED did not find may be locked for a moment, by a neighbour's statement."""
        if queue not in self._given_up and self.is_due(lane, queue, suspects=suspects) and self.may_come_again(queue):
            super()._hold_back(lane, queue, PAUSE_AFTER_A_MISS, has_claimed=False, suspects=suspects)

    def _note_claimed(self, queue: str, granted: int, claims: list[Claim]) -> None:
        if claims:
            with self._guard:
                self._misses.pop(queue, None)
                self._last_start[queue] = time.monotonic()
        self._request_again(self._limit.reserve(claims, granted))

    def _request_again(self, denied: Set[str]) -> None:
        for queue in denied:
            self.round_robin.request(queue)

    # What became of claims.

    def note_ended(self, claim: Claim, outcome: Outcome) -> None:
        self._limit.note_started((claim,))
        super().note_ended(claim, outcome)

    def note_succeeded(self, claims: list[Claim]) -> None:
        self._limit.note_started(claims)
        super().note_succeeded(claims)

    def note_next_released(self, queues: Set[str]) -> Set[str]:
        self.has_released_keys = True
        return super().note_next_released(queues)

    def note_coroutines(self, started: Collection[Claim], queue: str) -> None:
        self._limit.note_started(started)
        super().note_coroutines(started, queue)

    def note_released(self, claims: Collection[Claim]) -> None:
        self._request_again(self._limit.restore_unstarted(claims))
        super().note_released(claims)

    def note_done(self, claims: Collection[Claim]) -> None:
        self._request_again(self._limit.restore_unstarted(claims))

    def request(self, queue: str) -> None:
        if not self.is_suspects_turn:
            super().request(queue)

    # Progress.

    def watch(self, due: int) -> None:
        """Report progress now, and after each commit. `due`: how many there are to be started."""
        self._due = self._limit.at_most(due)
        self._report_progress()

    def count(self, claim: Claim, outcome: Outcome) -> None:
        super().count(claim, outcome)
        if isinstance(outcome, (Failed, Expired)):
            self._start.failures.add_claim(claim, outcome)
        self._report_progress()

    def count_succeeded(self, number: int) -> None:
        super().count_succeeded(number)
        self._report_progress()

    def report(self, *, left: int = 0, unknown: int = 0) -> BatchReport:
        """What the batch did so far."""
        seconds = time.monotonic() - self._start.since
        return report_of(
            self.outcomes, self._start.swept, self._start.failures.groups(), seconds=seconds, left=left,
            paused=self._start.paused, unknown=unknown,
        )  # fmt: skip

    @property
    def is_watched(self) -> bool:
        return self._options.progress is not None

    def _report_progress(self) -> None:
        """One at a time; what the user's function raises ends the batch."""
        if self._due is None or self._options.progress is None or self.failure is not None:
            return
        with self._telling:
            try:
                self._options.progress(self.report(left=max(0, self._due - self.outcomes.total())))
            except BaseException as error:
                self.note_failure(error)
