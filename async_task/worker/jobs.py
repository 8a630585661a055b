"""The two jobs of the original: one performs an attempt, one performs all that is due. Subclasses may be given to
`AsyncTask`; the mixins are for job classes that have a base of their own."""

import contextlib
import datetime as dt
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from functools import partial
from types import FrameType
from typing import Any, TypeVar

from async_task.database.dialects import locks_neighbours
from async_task.database.lanes import Lane
from async_task.database.transactions import retry_transient
from async_task.outcomes import Outcome
from async_task.queue import backlog, fenced_writes, limits, ordering, pauses
from async_task.queue.backlog import Scope
from async_task.queue.claim import Claim
from async_task.queue.sweep import sweep
from async_task.targets.registry import limits as target_limits
from async_task.targets.registry import own_queue
from async_task.worker.run_batch import Batch, BatchReport, Progress, Turns
from async_task.worker.runtime import Runtime

T = TypeVar("T")
PATIENCE = 10.0
"""Seconds for which a batch waits for a limit that lets nothing start."""


class BaseAttemptJob:
    """Performs one attempt: only if it is still pending and due, and nobody else performs it (square/async_task)."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def perform(self, attempt_id: uuid.UUID) -> Outcome:
        """Claim this attempt and perform it, or say why not: a duplicate delivery is a no-op."""
        with self.runtime.lane() as lane:
            claim = self.runtime.claim_one(lane, attempt_id)
            return claim if isinstance(claim, Outcome) else self.run(lane, claim)

    def run(self, lane: Lane, claim: Claim) -> Outcome:
        """Perform a claimed attempt; both jobs come through here."""
        return self.runtime.perform(lane, claim)


class BaseAttemptBatchJob:
    """Picks what is due and has each performed, once, in `concurrency` threads; suspects alone, at the end.

    What else `run_batch` was asked for is set on it before `perform`: `stop`, `scope` (which queues and targets),
    `deadline` (by time.monotonic(): from then on nothing is started), `progress` (told the report so far).
    """

    def __init__(self, runtime: Runtime, job: BaseAttemptJob) -> None:
        self.runtime = runtime
        self.job = job
        self.stop = threading.Event()
        self.scope = Scope()
        self.deadline: float | None = None
        self.progress: Progress | None = None
        self._paused: frozenset[str] = frozenset()
        self._limited: set[str] = set()
        self._last_start: dict[str, float] = {}

    def perform(self, limit: int | None = None, concurrency: int = 1) -> BatchReport:
        """Recover, expire, then perform everything that was due when it began, at most `limit` attempts."""
        since = time.monotonic()
        with self.runtime.lane() as lane:
            swept = lane.run(lambda: sweep(lane.engine, self.runtime.table, self.runtime.lease))
            self._line_up(lane)
            found, now = self._look(lane, backlog.queues, self.scope.queues)
            self._paused = self._look(lane, pauses.paused)
            self._limited = {*self._look(lane, limits.limited), *target_limits()}
            names = [name for name in found if name not in self._paused]
            paused = len(found) - len(names)
            batch = Batch(now, since, swept, limit=limit, stop=self.stop, deadline=self.deadline, paused=paused)
            if self.progress is not None:
                batch.watch(self.progress, self._left(lane, batch, names))
        following = names
        while following:
            with ThreadPoolExecutor(concurrency, "async-task-lane") as threads:
                self._wait_for(partial(self._begin, threads, batch, Turns(following)), concurrency)
            following = self._work_suspects(batch, names)
        return batch.report(left=self._left_for_want_of_time(batch, names))

    def _line_up(self, lane: Lane) -> None:
        """Let the first of each key go that has just arrived."""
        while self._look(lane, ordering.release_arrived) >= ordering.PAGE:
            pass

    def _begin(self, threads: ThreadPoolExecutor, batch: Batch, queues: "Turns") -> "Future[set[str]]":
        return threads.submit(self._work, batch, queues)

    def _wait_for(self, begin: "Callable[[], Future[set[str]]]", lanes: int) -> None:
        try:
            with interrupts_later():  # else a thread that is just being started would be left to itself
                waiting = {begin() for _ in range(lanes)}
            while waiting:
                # Not for ever at once: a signal that comes just before a wait is seen at the next one.
                ended, waiting = wait(waiting, timeout=0.5, return_when=FIRST_EXCEPTION)
                for one in ended:
                    one.result()
        except BaseException:
            self.stop.set()  # what is in hand is finished, and waited for: Ctrl-C starts nothing further
            raise

    def _work(self, batch: Batch, queues: Turns, *, suspects: bool = False) -> set[str]:
        """One lane: claim, perform, again, until nothing is due any more. Answers the queues of what was let go."""
        released: set[str] = set()
        with self.runtime.lane() as lane:
            while (claim := self._claim(lane, batch, queues, suspects=suspects)) is not None:
                batch.count(self.job.run(lane, claim))
                if (queue := self._queue_of_next(lane, claim)) is not None:
                    released.add(queue)
                    queues.reopen(queue)
        return released

    def _queue_of_next(self, lane: Lane, claim: Claim) -> str | None:
        """The queue of the attempt whose turn it now is in the order of a key; None for one that this batch leaves."""
        if claim.order_key is None:
            return None
        found = self._look(lane, ordering.next_of, claim.order_key)
        if found is None or found.id == claim.id or found.queue not in (self.scope.queues or (found.queue,)):
            return None
        queue: str = found.queue
        return queue

    def _claim(self, lane: Lane, batch: Batch, queues: Turns, *, suspects: bool) -> Claim | None:
        """An attempt of the queue whose turn it is; None when nothing further is there, or may be started."""
        while (queue := queues.take()) is not None:
            is_empty = False
            try:
                if not batch.may_start():
                    return None
                claim, after = self._take(lane, batch, queue, suspects=suspects)
                if claim is not None and not self._is_set_aside(lane, claim, queue):
                    return claim
                batch.take_back()
                if after is not None:
                    is_empty = self._is_held_back(lane, batch, queues, queue, after, suspects=suspects)
                elif claim is None:
                    is_empty = self._is_empty(lane, batch, queues, queue, suspects=suspects)
            finally:
                queues.put_back(queue, is_empty=is_empty)
        return None

    def _take(
        self, lane: Lane, batch: Batch, queue: str, *, suspects: bool
    ) -> tuple[Claim | None, dt.timedelta | None]:
        options: Any = {"began": batch.began, "suspects": suspects, "targets": self.scope.targets}
        if queue not in self._limited:
            return self.runtime.claim_due(lane, queue, **options), None
        claim, after = self.runtime.claim_limited(lane, queue, **options)
        if claim is not None:
            self._last_start[queue] = time.monotonic()
        return claim, after

    def _is_set_aside(self, lane: Lane, claim: Claim, queue: str) -> bool:
        """Whether it is a call of a paused target: it is given back, into the lane of that."""
        if (aside := own_queue(claim.target)) == queue or aside not in self._paused:
            return False
        self._look(lane, fenced_writes.release_to_queue, [claim], aside)
        return True

    def _is_held_back(
        self, lane: Lane, batch: Batch, queues: Turns, queue: str, after: dt.timedelta, *, suspects: bool
    ) -> bool:
        """Whether a limited queue is to be left to the next batch: nothing is due in it, or its limit has let nothing
        start for a while. Else its next turn is waited for, unless there are others to be asked meanwhile."""
        since = time.monotonic() - self._last_start.setdefault(queue, time.monotonic())
        look = partial(backlog.with_due, suspects=suspects)
        if since > PATIENCE or not self._look(lane, look, [queue], batch.began, self.scope.targets):
            return True
        self.stop.wait(0.02 if queues.has_others else min(after.total_seconds(), 0.2))
        return False

    def _is_empty(self, lane: Lane, batch: Batch, queues: Turns, queue: str, *, suspects: bool) -> bool:
        """Whether a queue in which nothing was found is empty; and not only locked for a moment by its neighbour."""
        if not locks_neighbours(lane.engine.dialect) or queues.is_given_up(queue):
            return True
        look = partial(backlog.with_due, suspects=suspects)
        is_empty = not self._look(lane, look, [queue], batch.began, self.scope.targets)
        if not is_empty:
            self.stop.wait(0.02)
        return is_empty

    def _work_suspects(self, batch: Batch, names: list[str]) -> list[str]:
        """The suspects, alone. Answers the queues in which there is more now, because a suspect was before it."""
        with self.runtime.lane() as lane:
            look = partial(backlog.with_due, suspects=True)
            found = self._look(lane, look, names, batch.began, self.scope.targets)
        return sorted(self._work(batch, Turns(found), suspects=True)) if found else []

    def _left_for_want_of_time(self, batch: Batch, names: list[str]) -> int:
        if not batch.is_out_of_time:
            return 0
        with self.runtime.lane() as lane:
            return self._left(lane, batch, names)

    def _left(self, lane: Lane, batch: Batch, names: list[str]) -> int:
        return self._look(lane, backlog.left, names, batch.began, self.scope.targets)

    def _look(self, lane: Lane, look: Callable[..., T], *where: Any) -> T:
        return retry_transient(lambda: lane.run(lambda: look(lane.engine, self.runtime.table, *where)))


class AttemptJob(BaseAttemptJob):
    """The ready-made single-attempt job."""


class AttemptBatchJob(BaseAttemptBatchJob):
    """The ready-made batch job."""


@contextlib.contextmanager
def interrupts_later() -> Iterator[None]:
    """In the main thread: the first SIGINT is raised as KeyboardInterrupt when the work is done, a second one at once.

    Only where Python's own handler is in place: whoever has another one knows better.
    """
    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt
