"""Which queue a lane of a worker serves next: queues in which something is believed to be due take turns."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping


class RoundRobin:
    """What the lanes of one worker share. Thread-safe.

    `lanes`: how many there are. `limits`: how many of them may serve a queue at once, where that is limited. `rested`:
    called when the last lane has come to rest, or there is something to be done later.
    """

    def __init__(self, lanes: int, limits: Mapping[str, int], rested: Callable[[], None]) -> None:
        self._lanes = lanes
        self._limits = dict(limits)
        self._rested = rested
        self._calls: dict[str, int] = {}
        """How many lanes each queue calls for, in the order of their turns."""
        self._serving: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._is_over = False
        self._later: dict[str, float] = {}
        self.paused: frozenset[str] = frozenset()
        """Queues that nobody may serve now."""
        self.limited: frozenset[str] = frozenset()
        """Queues from which only so much may be claimed."""
        self.num_claimed = 0
        """How many attempts the lanes have claimed so far."""

    def ring(self, queue: str, number: int = 1) -> None:
        """Something is due there: worth a look by so many lanes."""
        if queue in self.paused:
            return  # a look finds it when it is resumed
        with self._changed:
            self._calls[queue] = min(self._calls.get(queue, 0) + number, self._lanes)
            self._changed.notify(number)

    def ring_later(self, queue: str, seconds: float) -> None:
        """Ring in so long; for `ring_what_is_late` to do."""
        with self._changed:
            at = time.monotonic() + seconds
            self._later[queue] = min(at, self._later.get(queue, at))
        self._rested()

    def ring_what_is_late(self) -> float | None:
        """Ring where the time has come. Answers the moment of the next one, by time.monotonic()."""
        with self._changed:
            now = time.monotonic()
            late = [queue for queue, at in self._later.items() if at <= now]
            for queue in late:
                del self._later[queue]
            following = min(self._later.values(), default=None)
        for queue in late:
            self.ring(queue)
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
        """This lane no longer serves it, and has claimed so many attempts of it."""
        with self._changed:
            self.num_claimed += num_claimed
            self._serving[queue] -= 1
            if queue in self._limits and queue in self._calls:
                self._changed.notify()
            is_quiet = not self._calls and not self._serving.total()
        if is_quiet:
            self._rested()

    @property
    def num_serving(self) -> int:
        """How many lanes serve a queue now."""
        with self._changed:
            return self._serving.total()

    @property
    def is_quiet(self) -> bool:
        """Whether no lane serves a queue, and none is called for."""
        with self._changed:
            return not self._calls and not self._serving.total()

    def end(self) -> None:
        """No lane is sent anywhere any more."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def _next(self) -> str | None:
        for queue, number in self._calls.items():
            if queue not in self.paused and self._serving[queue] < self._limits.get(queue, self._lanes):
                del self._calls[queue]
                if number > 1:
                    self._calls[queue] = number - 1  # at the end: it is the next one's turn
                self._serving[queue] += 1
                return queue
        return None
