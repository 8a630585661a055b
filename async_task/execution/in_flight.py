"""What a lane has in hand: calls that wait, the one that is made, and those that have answered and are not written yet.

The lane takes from it; whoever watches the lane looks at it from another thread, and may take away what waits. Both do
so `guarded`.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

from async_task.database.lanes import Lane
from async_task.execution.call import PreparedCall
from async_task.execution.settle import Called, Settled
from async_task.queue.claim import Claim

Waiting = tuple[Claim, PreparedCall]
Ended = Callable[[Claim, PreparedCall, Settled], None]


class Running(NamedTuple):
    """The call that is being made, `since` when (`time.monotonic`)."""

    claim: Claim
    since: float


class InFlight:
    """`stop`: once it answers True, nothing further is started. `within`: seconds after which what has answered is to
    be written, whatever still waits."""

    def __init__(self, lane: Lane, calls: Iterable[Waiting], within: float, stop: Callable[[], bool]) -> None:
        self._lane = lane
        self.stop = stop
        self.within = within
        self.waiting = deque(calls)
        self.running: Running | None = None
        self.called: list[Called] = []
        """What has answered."""
        self.held_since: float | None = None
        """When the first answered of what is not committed."""
        self.in_calls = 0.0
        """Seconds. What the database takes is not counted: if it is slow, smaller portions make it slower."""
        self._left = 0
        self._guard = threading.Lock()

    def guarded(self) -> AbstractContextManager[object]:
        """For the lane's own thread. Inside of `lane.run`."""
        return self._lane.holding(self._guard) if self._lane.is_async else self._guard

    @contextmanager
    def guarded_from_outside(self, patience: float) -> Iterator[bool]:
        """For other threads; True if it is theirs within so many seconds. Else the lane is at the database."""
        is_mine = self._guard.acquire(timeout=patience) if patience else self._guard.acquire(blocking=False)
        try:
            yield is_mine
        finally:
            if is_mine:
                self._guard.release()

    def offer(self, chosen: list[Waiting]) -> None:
        """These are next, and no others until more are offered."""
        self.waiting.extendleft(reversed(chosen))
        self._left = len(chosen)

    def next(self) -> Waiting | None:
        """The next of those that were offered, which runs from now on; None when none is left, what was called before
        wants to be written, or nothing is to be started."""
        with self.guarded():
            now = time.monotonic()
            is_late = self.held_since is not None and now - self.held_since >= self.within
            if not self._left or not self.waiting or is_late or self.stop():
                self.running = None
                return None
            self._left -= 1
            one = self.waiting.popleft()
            self.running = Running(one[0], now)
            return one

    def take_all_waiting(self) -> list[Claim]:
        """They are to be given back."""
        unstarted = [claim for claim, _ in self.waiting]
        self.waiting.clear()
        return unstarted

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Around a call."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.in_calls += time.monotonic() - began


class Reports:
    """What is to be told of calls that were written with others, once that is committed: most have succeeded, and are
    told of together; the rest one by one."""

    def __init__(self, tell_succeeded: Callable[[list[Claim]], None], tell_ended: Ended) -> None:
        self._tell_succeeded = tell_succeeded
        self._tell_ended = tell_ended
        self.succeeded: list[Claim] = []
        self.ended: list[tuple[Claim, PreparedCall, Settled]] = []

    def tell(self) -> None:
        succeeded, self.succeeded = self.succeeded, []
        if succeeded:
            self._tell_succeeded(succeeded)
        ended, self.ended = self.ended, []
        for one in ended:
            self._tell_ended(*one)
