"""Which queue a lane serves next: queues in which something is believed to be due take turns."""

import threading
import time
from collections import Counter
from collections.abc import Mapping

from async_task.wakeup.in_process import Notifier

SAME_TIME = 0.001
"""Seconds within which two searches are one."""


class RoundRobin:
    """Shared by the lanes of one worker or batch. Thread-safe.

    A full queue does not make the queues behind it wait. A request is taken by one lane, so that an empty queue is not
    claimed from by all of them.

    `lanes`: how many there are. `limits`: how many of them may serve a queue at once, where that is limited.
    `notifier`: woken when something was requested for later, and when all lanes have become idle, unless calls wait for
    slots.
    """

    def __init__(self, lanes: int, limits: Mapping[str, int], notifier: Notifier | None = None) -> None:
        self._lanes = lanes
        self._limits = dict(limits)
        self._notifier = notifier
        self._requests: dict[str, int] = {}
        """How many lanes are wanted for each queue, in the order of their turns."""
        self._serving: Counter[str] = Counter()
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        """For the lanes."""
        self._idle = threading.Condition(lock)
        """For whoever waits until they are idle: a condition of its own, so that no lane misses a request."""
        self._is_over = False
        self._later: dict[str, float] = {}
        self._searches: dict[str, float] = {}
        """When something is requested in which perhaps nothing is due."""
        self.paused: frozenset[str] = frozenset()
        """Queues that no lane may serve now."""
        self.limited: frozenset[str] = frozenset()
        """Queues with a limit in the database."""
        self.num_claimed = 0
        """How many attempts the lanes have claimed so far."""

    def request(self, queue: str, number: int = 1) -> None:
        """Something may be due there: have it served by `number` lanes."""
        if queue in self.paused:
            return  # a poll finds it when it is resumed
        with self._changed:
            self._requests[queue] = min(self._requests.get(queue, 0) + number, self._lanes)
            self._changed.notify(number)

    def request_later(self, queue: str, seconds: float) -> None:
        """Request it after that time; `request_overdue` does so."""
        with self._changed:
            at = time.monotonic() + seconds
            self._later[queue] = min(at, self._later.get(queue, at))
            self._idle.notify_all()
        self._wake()

    def request_search(self, queue: str, seconds: float) -> None:
        """The same for a queue in which perhaps nothing is due: nobody waits for that to be idle."""
        if seconds <= 0:
            self.request(queue)
            return
        with self._changed:
            at = time.monotonic() + seconds
            is_sooner = at < self._searches.get(queue, float("inf")) - SAME_TIME
            if is_sooner:
                self._searches[queue] = at
        if is_sooner:
            self._wake()

    def request_overdue(self) -> float | None:
        """Request the queues whose time has come. Returns when the next one's time comes, by time.monotonic()."""
        with self._changed:
            now = time.monotonic()
            planned = self._later, self._searches
            overdue = [(one, queue) for one in planned for queue, at in one.items() if at <= now]
            for one, queue in overdue:
                del one[queue]
            following = min((at for one in planned for at in one.values()), default=None)
        for _, queue in overdue:
            self.request(queue)
        return following

    def take(self) -> str | None:
        """The queue whose turn it is, as soon as there is one; None at the end."""
        with self._changed:
            while not self._is_over:
                if (queue := self._next()) is not None:
                    return queue
                self._changed.wait()
            return None

    def put_back(self, queue: str, num_claimed: int) -> None:
        """This lane no longer serves it, and has claimed `num_claimed` attempts of it."""
        with self._changed:
            self.num_claimed += num_claimed
            self._serving[queue] -= 1
            if queue in self._limits and queue in self._requests:
                self._changed.notify()
            is_idle = self._has_only_idle_lanes()
            if is_idle:
                self._idle.notify_all()
        if is_idle and not self.is_short_of_slots:
            self._wake()

    @property
    def is_short_of_slots(self) -> bool:
        """Whether calls wait for a slot: lanes are idle only because no further coroutine can be started."""
        return bool(self._searches)

    @property
    def is_idle(self) -> bool:
        """Whether no lane serves a queue, and none is requested."""
        with self._changed:
            return self._has_only_idle_lanes()

    def wait_until_idle(self, seconds: float) -> bool:
        """Wait until no lane serves a queue and none is requested, now or later; at most for `seconds`, or until
        something is requested for later. Returns whether it is so."""
        with self._changed:
            if not self._has_only_idle_lanes() or self._later:
                self._idle.wait(seconds)
            return self._has_only_idle_lanes() and not self._later

    def end(self) -> None:
        """No lane is given a queue any more."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def _has_only_idle_lanes(self) -> bool:
        return not self._requests and not self._serving.total()

    def _wake(self) -> None:
        if self._notifier is not None:
            self._notifier.wake()

    def _next(self) -> str | None:
        for queue, number in self._requests.items():
            if queue not in self.paused and self._serving[queue] < self._limits.get(queue, self._lanes):
                del self._requests[queue]
                if number > 1:
                    self._requests[queue] = number - 1  # at the end: it is the next one's turn
                self._serving[queue] += 1
                return queue
        return None
