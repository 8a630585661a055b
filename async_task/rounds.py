"""Which queue a lane of a worker serves next: queues in which something is believed to be due take turns."""

import threading
from collections import Counter
from collections.abc import Mapping


class Rounds:
    """What the lanes of one worker share. Thread-safe.

    `lanes`: how many there are. `limits`: how many of them may serve a queue at once, where that is limited.
    """

    def __init__(self, lanes: int, limits: Mapping[str, int]) -> None:
        self._lanes = lanes
        self._limits = dict(limits)
        self._calls: dict[str, int] = {}
        """How many lanes each queue calls for, in the order of their turns."""
        self._serving: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._is_over = False

    def ring(self, queue: str, number: int = 1) -> None:
        """Something is due there: worth a look by so many lanes."""
        with self._changed:
            self._calls[queue] = min(self._calls.get(queue, 0) + number, self._lanes)
            self._changed.notify(number)

    def take(self) -> str | None:
        """The queue whose turn it is, as soon as there is one; None at the end."""
        with self._changed:
            while not self._is_over:
                if (queue := self._next()) is not None:
                    return queue
                self._changed.wait()
            return None

    def put_back(self, queue: str) -> None:
        """This lane no longer serves it."""
        with self._changed:
            self._serving[queue] -= 1
            if queue in self._limits and queue in self._calls:
                self._changed.notify()

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
        # Without the lock: a signal's handler may run in a thread that holds it.
        self._is_over = True
        if self._changed.acquire(blocking=False):
            try:
                self._changed.notify_all()
            finally:
                self._changed.release()

    def _next(self) -> str | None:
        for queue, number in self._calls.items():
            if self._serving[queue] < self._limits.get(queue, self._lanes):
                del self._calls[queue]
                if number > 1:
                    self._calls[queue] = number - 1  # at the end: it is the next one's turn
                self._serving[queue] += 1
                return queue
        return None
