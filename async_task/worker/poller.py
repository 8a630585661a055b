"""The poller of a worker: it looks for what is due, and requests lanes for it.

1. It waits to be notified of a queue, and polls by itself, less and less often while nothing is found.
2. A poll is one statement. What else it finds (suspects, orphans, overdue attempts) is left to background tasks.
3. When all is idle it marks this process as asleep, so that other processes notify it of new attempts; and polls again.
"""

import contextlib
import time
from collections.abc import Sequence
from typing import Protocol

from async_task.database.lanes import Lane
from async_task.database.transactions import retry_transient
from async_task.errors import AlreadyRunning
from async_task.execution.adaptive import PollInterval, QueryCost
from async_task.queue import workers
from async_task.queue.ordering import PAGE, overlooked, release_arrived, release_keys
from async_task.queue.poll import PollResult, SeenQueues, poll
from async_task.queue.workers import WORKER
from async_task.wakeup.in_process import Notifier
from async_task.wakeup.listener import Listener
from async_task.worker.background_task import BackgroundTask
from async_task.worker.pruner import PRUNES_EVERY
from async_task.worker.round_robin import RoundRobin
from async_task.worker.runtime import Runtime

BUSY_FOR = 0.2
"""Seconds of uninterrupted work after which a process is no longer marked as asleep."""
AFTER_A_NOTICE = 0.05
"""Seconds from a notification to a poll: a Core connection notifies a moment before the row is committed."""
WITHOUT_SLOTS = 0.05
"""Seconds from a poll to the next one, after progress, while coroutines wait for slots: then lanes are idle after each
claim."""
SOONEST = 0.005
"""Seconds from a poll to the next one, however soon the next attempt is due."""
KEYS_FOR = 60.0
"""Seconds for which more attempts with order keys are expected: these can be claimed only after a poll."""
KEYS_EVERY = 15.0
"""Seconds between two looks for order keys of which nothing is released, at one page of the keys."""
SWEEPS_EVERY = 600.0
"""Seconds after which a sweep is made although a poll finds nothing for it: it removes rows of dead workers."""


class WorkerRequests(Protocol):
    """What is asked of a worker, from any thread."""

    @property
    def is_stopping(self) -> bool: ...

    def take_poll_request(self) -> bool:
        """Whether a poll was requested since this was last asked."""
        ...


class Poller:
    """`queues`: those to be served; if empty, all. `suspects`, `sweep`: requested when there is something for them.
    `prune`, `sweep_polls`: now and then; None: never. `sweep_polls_every`: in seconds."""

    def __init__(
        self,
        runtime: Runtime,
        round_robin: RoundRobin,
        notifier: Notifier,
        listener: Listener | None,
        interval: PollInterval,
        queues: Sequence[str],
        requests: WorkerRequests,
        *,
        suspects: BackgroundTask,
        sweep: BackgroundTask,
        prune: BackgroundTask | None,
        sweep_polls: BackgroundTask | None,
        sweep_polls_every: float,
    ) -> None:
        self._runtime = runtime
        self._round_robin = round_robin
        self._notifier = notifier
        self._listener = listener
        self._interval = interval
        self._queues = queues
        self._requests = requests
        self._seen = SeenQueues()
        self._suspects = suspects
        self._sweep = sweep
        self._is_asleep = False
        self._busy_since: float | None = None
        self._num_claimed = 0
        self._sweeps_at = 0.0
        self._prune = prune
        self._prunes_at = 0.0
        self._sweep_polls = sweep_polls
        self._sweep_polls_every = sweep_polls_every
        self._sweeps_polls_at = 0.0
        self._not_before = 0.0
        self._cost = QueryCost()
        self._keys_seen_at = -KEYS_FOR
        self._keys_at = time.monotonic() + KEYS_EVERY
        self._last_key: str | None = None
        self._next_due: float | None = None
        self._is_told = False

    def live(self) -> None:
        """Until the worker is stopping."""
        with self._runtime.private_lane() as lane:
            while not self._requests.is_stopping:
                self._try_to_poll(lane)
                self._wait()
            if self._is_asleep:
                with contextlib.suppress(Exception):
                    lane.run(lambda: self._mark(lane, asleep=False))

    def _try_to_poll(self, lane: Lane) -> None:
        """A database that does not answer is polled again as often as that of an idle worker."""
        try:
            found = lane.run(lambda: self._poll(lane))
            lane.run(lambda: self._fall_asleep_or_wake(lane, found))
            self._runtime.outages.over()
        except AlreadyRunning as error:
            self._runtime.heartbeat.lose_name(error)
        except Exception as error:
            lane.run(lane.drop_connection)
            self._is_asleep = False
            self._runtime.outages.failed(error)

    def _poll(self, lane: Lane) -> PollResult:
        began = time.monotonic()
        found = self._poll_once(lane)
        now = time.monotonic()
        # A poll is expensive while an old snapshot is open somewhere.
        self._not_before = now + self._cost.note(now - began, now=now)
        may_be_old = self._round_robin.is_idle  # claims from the marks have left it
        if found.has_arrivals or self._release_overlooked(lane):
            found = self._poll_after_release(lane)
            may_be_old = True
        resumed = self._round_robin.paused - found.paused
        self._round_robin.paused, self._round_robin.limited = found.paused, found.limited
        for queue in found.queues:
            if may_be_old or queue in resumed:
                self._runtime.claimer.start_at_front(queue)
            self._round_robin.request(queue)
        if found.has_suspects:
            self._suspects.request()
        if found.has_orphans or found.has_overdue or time.monotonic() >= self._sweeps_at:
            self._sweeps_at = time.monotonic() + SWEEPS_EVERY
            self._sweep.request()
        if self._prune is not None and time.monotonic() >= self._prunes_at:
            self._prunes_at = time.monotonic() + PRUNES_EVERY
            self._prune.request()
        if self._sweep_polls is not None and time.monotonic() >= self._sweeps_polls_at:
            self._sweeps_polls_at = time.monotonic() + self._sweep_polls_every
            self._sweep_polls.request()
        self._is_told = self._is_asleep and found.knows_next
        self._next_due = None if found.next_due is None else time.monotonic() + max(found.next_due, SOONEST)
        if self._has_progressed() and not (self._is_told or self._round_robin.is_short_of_slots):
            self._interval.notified()
        return found

    def _poll_after_release(self, lane: Lane) -> PollResult:
        """After the first attempts of new order keys were released."""
        self._keys_seen_at = time.monotonic()
        while release_arrived(lane.engine, self._runtime.table, silent=self._served) >= PAGE:
            pass
        return self._poll_once(lane)

    def _release_overlooked(self, lane: Lane) -> bool:
        """Now and then, at one page of the order keys. Returns whether anything was released."""
        if time.monotonic() < self._keys_at:
            return False
        table = self._runtime.table
        keys, self._last_key = overlooked(lane.autocommit, table, PAGE, self._last_key)
        self._keys_at = time.monotonic() + KEYS_EVERY
        return bool(retry_transient(lambda: release_keys(lane.engine, table, keys, silent=self._served)))

    @property
    def _served(self) -> Sequence[str] | None:
        """The queues of which nobody else need be told; None: all."""
        if self._requests.is_stopping or self._runtime.unknown_calls.left_out().parts:
            return ()
        return self._queues or None

    def _poll_once(self, lane: Lane) -> PollResult:
        runtime = self._runtime
        unknown = runtime.unknown_calls.left_out()
        return poll(lane.autocommit, runtime.table, runtime.worker, runtime.lease, self._queues, self._seen, unknown)

    def _fall_asleep_or_wake(self, lane: Lane, found: PollResult) -> None:
        now = time.monotonic()
        is_idle = not found.queues and self._round_robin.is_idle
        self._busy_since = None if is_idle else self._busy_since or now
        can_be_notified = self._listener is not None and self._listener.is_listening
        if is_idle and can_be_notified and not self._is_asleep:
            self._mark(lane, asleep=True)
            self._interval.found()  # poll again at once: nobody was notified of earlier commits
        elif self._is_asleep and (not can_be_notified or now - (self._busy_since or now) > BUSY_FOR):
            self._mark(lane, asleep=False)

    def _wait(self) -> None:
        """Until it is time to poll. Queues that are notified meanwhile are requested at once."""
        until = time.monotonic() + self._interval.next(is_told=self._is_told)
        if self._next_due is not None:
            until = min(until, self._next_due)
        until = max(until, self._not_before)
        while not self._requests.is_stopping:
            later = self._round_robin.request_overdue()
            now = time.monotonic()
            if now >= until:
                return
            seconds = max(0.0, min(until, later or until) - now)
            if self._round_robin.is_short_of_slots:  # idle lanes do not wake it then
                seconds = min(seconds, WITHOUT_SLOTS)
            if self._notifier.wait(seconds, self._queues or None, self._round_robin.request):
                uses_keys = time.monotonic() - self._keys_seen_at < KEYS_FOR
                soon = time.monotonic() + (0 if uses_keys else AFTER_A_NOTICE)
                until = min(until, max(soon, self._not_before))
            elif self._requests.take_poll_request():
                until = min(until, max(time.monotonic(), self._not_before))
            elif self._has_progressed():
                # All lanes have become idle. While this process is awake, nobody else will tell what is due now; and
                # when the next attempt is due, a retry perhaps, only a poll tells.
                soon = time.monotonic() + (AFTER_A_NOTICE if self._is_asleep else 0)
                until = min(until, max(soon, self._not_before))

    def _mark(self, lane: Lane, *, asleep: bool) -> None:
        mark = workers.mark_asleep if asleep else workers.mark_awake
        mark(lane.autocommit, self._runtime.table, self._runtime.worker, kind=WORKER)
        self._is_asleep = asleep

    def _has_progressed(self) -> bool:
        """Whether anything was claimed since this was last asked."""
        before, self._num_claimed = self._num_claimed, self._round_robin.num_claimed
        return self._num_claimed != before
