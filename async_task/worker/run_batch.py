"""A batch: everything that was due when it began is performed, once, on lanes like those of a worker.

1. Orphans are recovered, and what is overdue expires.
2. Lanes perform what is due, until the table says that nothing of it is left.
3. Suspects are performed in processes of their own, while nothing else is. What waited behind them in the order of a
   key follows.
"""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from async_task.database.lanes import Lane
from async_task.database.transactions import retry_transient
from async_task.error_text import describe
from async_task.polling.sweep import sweep_polls
from async_task.queue import backlog, fenced_writes, fetch, limits, pauses
from async_task.queue.claim import Claim
from async_task.queue.sweep import sweep
from async_task.worker.batch_failures import FinalFailures
from async_task.worker.batch_report import BatchReport
from async_task.worker.batch_runs import Why, record_run
from async_task.worker.batch_workload import PAUSE_AFTER_A_MISS, BatchOptions, BatchStart, BatchWorkload
from async_task.worker.lane_pool import LanePool
from async_task.worker.round_robin import RoundRobin
from async_task.worker.runtime import Runtime
from async_task.worker.signals import interrupts_later
from async_task.worker.workload import PerformClaim

logger = logging.getLogger("async_task")
T = TypeVar("T")
LONGEST_WAIT = 0.5
"""Seconds after which it is checked again whether the batch is to end."""
COROUTINES_WAIT = 0.05
"""Seconds after which lanes are looked at again while coroutines run."""


def run_batch(runtime: Runtime, own_job: PerformClaim | None, options: BatchOptions) -> BatchReport:
    """Perform everything that is due now, once. `own_job`: what every claim is to be performed by, where that is a job
    of the user's own."""
    with runtime.lane() as lane:
        since, batch = time.monotonic(), None
        try:
            batch = _Batch(runtime, lane, own_job, options)
            report = batch.run()
        except BaseException as error:
            so_far = BatchReport(seconds=time.monotonic() - since) if batch is None else batch.so_far
            record_run(lane, runtime, so_far, "error" if isinstance(error, Exception) else "stopped", error)
            raise
        record_run(lane, runtime, report, batch.why)
        return report


class _Batch:
    """`lane`: of the thread that runs the batch, which performs nothing on it but suspects."""

    def __init__(
        self, runtime: Runtime, lane: Lane, own_job: PerformClaim | None, options: BatchOptions
    ) -> None:  # fmt: skip
        since = time.monotonic()
        self._runtime = runtime
        self._lane = lane
        self._options = options
        self._is_interrupted_again = False
        self._round_robin = RoundRobin(options.concurrency, {})
        failures = FinalFailures()
        hooks = runtime.hooks
        swept = lane.run(lambda: sweep(lane.engine, runtime.table, runtime.lease, tell=failures.add, hooks=hooks))
        lane.run(lambda: sweep_polls(lane.engine, runtime.model))
        found, self._began = self._ask(backlog.queues, options.scope.queues)
        self._round_robin.paused = self._ask(pauses.paused)
        self._round_robin.limited = frozenset(self._ask(limits.limited))
        self._queues = self._without_paused(found)
        start = BatchStart(self._began, since, swept, paused=len(found) - len(self._queues), failures=failures)
        self._workload = BatchWorkload(runtime, self._round_robin, own_job, options, start)

    def run(self) -> BatchReport:
        if self._options.progress is not None:
            self._workload.watch(self._num_left())
        if self._queues and not self._workload.is_spent and not self._workload.is_over():
            self._perform_all()
        if self._workload.failure is not None:
            raise self._workload.failure
        left = self._num_left() if self._workload.is_out_of_time else 0
        return self._workload.report(left=left, unknown=self._num_unknown())

    @property
    def so_far(self) -> BatchReport:
        """What it did."""
        return self._workload.report()

    @property
    def why(self) -> Why:
        """Why it has ended, unless it raised."""
        if self._workload.is_out_of_time:
            return "time"
        if self._options.stop.is_set():
            return "stopped"
        return "limit" if self._workload.is_spent else "done"

    def _perform_all(self) -> None:
        pool = LanePool(self._workload, concurrency=self._options.concurrency)
        try:
            with interrupts_later():  # else a thread that is just being started would be left to itself
                pool.start()
            for queue in self._queues:
                self._round_robin.request(queue)
            self._wait_until_done(pool)
            while self._perform_suspects():
                self._wait_until_done(pool)
        except BaseException:
            self._is_interrupted_again = self._options.stop.is_set()
            self._options.stop.set()  # running calls are finished, and waited for: Ctrl-C starts nothing further
            raise
        finally:
            self._end(pool)

    def _end(self, pool: LanePool) -> None:
        """When it is interrupted again: abandon running calls."""
        try:
            if not pool.finish(lambda: not self._is_interrupted_again):
                pool.abandon()
        except BaseException:
            pool.abandon()
            raise
        finally:
            pool.close()
        try:
            self._release(self._lost_claims())
        except Exception as error:  # the database is away: whatever ends the batch now says so
            logger.warning("claims of a batch may wait for their lease: %s", describe(error).summary)

    # What is due.

    def _wait_until_done(self, pool: LanePool) -> None:
        """Until nothing is left that may be started; suspects are."""
        while not self._may_not_start():
            following = self._round_robin.request_overdue()
            longest = LONGEST_WAIT if following is None else min(LONGEST_WAIT, max(0.0, following - time.monotonic()))
            if not self._round_robin.wait_until_idle(longest):
                continue
            claimed_before = self._round_robin.num_claimed
            if not pool.coroutines.slots.wait(COROUTINES_WAIT):
                continue
            # Only the table knows: a coroutine may have ended a moment ago, a key have been released into any queue.
            lost = self._lost_claims()
            if self._has_stayed_idle(pool, claimed_before):
                self._release(lost)
            if not self._request_what_is_left() and self._has_stayed_idle(pool, claimed_before):
                return

    def _has_stayed_idle(self, pool: LanePool, claimed_before: int) -> bool:
        is_idle = self._round_robin.is_idle and not pool.is_releasing
        return is_idle and self._round_robin.num_claimed == claimed_before

    def _lost_claims(self) -> list[Claim]:
        """While all is idle: claims that no thread knows, as the database failed when they were to be released."""
        claims = self._ask(fetch.claims_of, self._runtime.worker)
        return [claim for claim in claims if not self._runtime.heartbeat.tracks(claim.id)]

    def _release(self, claims: list[Claim]) -> None:
        if claims:
            logger.warning("a batch releases %d lost claims", len(claims))
            self._ask(fenced_writes.release_abandoned, claims)

    def _request_what_is_left(self) -> bool:
        """Whether anything was left, in a queue in which not too often nothing was found."""
        left = [queue for queue in self._with_due(suspects=False) if self._workload.may_come_again(queue)]
        if self._workload.has_missed(left):
            self._options.stop.wait(PAUSE_AFTER_A_MISS)
        for queue in left:
            self._round_robin.request(queue)
        return bool(left)

    def _perform_suspects(self) -> bool:
        """Perform suspects, queue by queue in turn. Whether there were any: others may have waited behind them."""
        turns = deque(() if self._may_not_start() else self._with_due(suspects=True))
        has_performed = False
        self._workload.is_suspects_turn = True
        with self._runtime.private_lane() if turns else contextlib.nullcontext(self._lane) as lane:
            while turns and not self._may_not_start():
                queue = turns.popleft()
                if self._workload.perform_suspects(lane, partial(list, (queue,))):
                    has_performed = True
                    turns.append(queue)
                elif self._workload.was_held_back(queue):
                    turns.append(queue)
                    self._options.stop.wait(PAUSE_AFTER_A_MISS)
        self._workload.is_suspects_turn = False
        return has_performed

    def _may_not_start(self) -> bool:
        return self._workload.is_over() or self._workload.is_spent

    # What the table says.

    def _with_due(self, *, suspects: bool) -> list[str]:
        if self._workload.has_released_keys:
            self._workload.has_released_keys = False
            self._queues = self._without_paused(self._ask(backlog.queues, self._options.scope.queues)[0])
        left_out = self._runtime.unknown_calls.left_out()
        return self._ask(backlog.with_due, self._queues, *self._due_then, suspects=suspects, left_out=left_out)

    def _num_left(self) -> int:
        return self._ask(
            backlog.left, self._queues, *self._due_then, left_out=self._runtime.unknown_calls.left_out()
        )  # fmt: skip

    def _num_unknown(self) -> int:
        unknown = self._runtime.unknown_calls.left_out()
        return self._ask(backlog.left, self._queues, *self._due_then, only=unknown) if unknown.parts else 0

    @property
    def _due_then(self) -> tuple[Any, ...]:
        return self._began, self._options.scope.targets

    def _without_paused(self, queues: list[str]) -> list[str]:
        return [name for name in queues if name not in self._round_robin.paused]

    def _ask(self, query: Callable[..., T], *where: Any, **which: Any) -> T:
        lane, table = self._lane, self._runtime.table
        return retry_transient(lambda: lane.run(lambda: query(lane.engine, table, *where, **which)))
