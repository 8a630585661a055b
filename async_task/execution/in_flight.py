"""Calls that a lane has claimed and not committed: those that wait, the one that runs, and those that have finished.

The lane's thread takes calls from here. The watchdog reads this from another thread, and may remove calls that wait.
Both hold the lock.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

from async_task.database.lanes import Lane
from async_task.execution.call import PreparedCall
from async_task.execution.finished_call import FinishedCall
from async_task.queue.claim import Claim

ClaimedCall = tuple[Claim, PreparedCall]


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
        return self._lane.holding(self._lock) if self._lane.is_async else self._lock

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

    def start_next(self) -> ClaimedCall | None:
        """The next scheduled call, which is now the running one. None if there is none, if finished calls must be
        committed first, or if the worker is stopping."""
        with self.lock():
            now = time.monotonic()
            is_late = self.first_finished_at is not None and now - self.first_finished_at >= self.settle_within
            if not self._num_scheduled or not self.waiting or is_late or self.is_stopping():
                self.running = None
                return None
            self._num_scheduled -= 1
            one = self.waiting.popleft()
            self.running = RunningCall(one[0], now)
            return one

    def remove_waiting(self) -> list[Claim]:
        """The claims of all calls that wait, which the caller releases."""
        claims = [claim for claim, _ in self.waiting]
        self.waiting.clear()
        return claims

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Around a call: add its time to `seconds_in_calls`."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds_in_calls += time.monotonic() - began
