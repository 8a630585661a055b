"""The slots of coroutines: how many may run at once in this process. Thread-safe.

A lane reserves slots before it claims from a queue with coroutines. Else each lane would claim calls for the same slot,
and release them again.
"""

import random
import threading
from collections.abc import Callable

FEW = 4
"""Few slots are free if fewer than one in so many is."""
LINGER = 0.005
"""Seconds for which few free slots wait for others, so that one claim is for several."""


class Slots:
    """`number` of them. `is_open`: whether a coroutine can be started now. `requested` is given each queue for which
    slots were refused, once a lane has used or released what it had reserved."""

    def __init__(self, number: int, is_open: Callable[[], bool], requested: Callable[[str], None]) -> None:
        self._number = number
        self._is_open = is_open
        self._requested = requested
        self.changed = threading.Condition()
        """Notified when a slot was freed."""
        self._num_reserved = 0
        self.num_used = 0
        """How many coroutines run, or are being settled."""
        self._refused: set[str] = set()
        self._is_wanted = False
        """Whether none was free, and the queues have not been requested since."""
        self._is_lingering = False

    def reserve(self, number: int, queue: str) -> "Reservation":
        """Reserve up to `number` slots for coroutines of this queue. While few are free, a lane gets none until the one
        before it has used or released its own. So what becomes free meanwhile is claimed together."""
        with self.changed:
            waits = self._num_reserved > 0 and self._has_few_free()
            reserved = Reservation(self, 0 if waits else self.reserve_more(number))
            if not reserved.number:
                self._refused.add(queue)
            return reserved

    def reserve_more(self, number: int) -> int:
        """Reserve up to `number` slots, whatever others have reserved. Returns how many."""
        with self.changed:
            granted = min(number, self._num_free) if self._is_open() else 0
            self._num_reserved += granted
            return granted

    def want(self, queue: str) -> None:
        """More coroutines wait in this queue: as if slots had been refused to it."""
        with self.changed:
            self._refused.add(queue)

    def use(self, number: int, num_reserved: int) -> None:
        """Use `number` of the slots that were reserved, and release the others."""
        with self.changed:
            self._num_reserved -= num_reserved
            self.num_used += number
            if self._num_free <= 0 or self._is_lingering:
                return  # whoever frees a slot, or `offer`, requests all queues
            refused = list(self._refused)
            self._refused.clear()
        random.shuffle(refused)  # the first one takes the slot: it is not to be always the same
        for queue in refused:
            self._requested(queue)

    def free(self) -> float | None:
        """Free a slot that was used. Returns in how many seconds `offer` is to be asked; None: it need not be."""
        with self.changed:
            self._is_wanted = self._is_wanted or self._num_free <= 0
            self.num_used -= 1
            self.changed.notify_all()
            if not self._is_wanted:
                return None
            if not self._has_few_free():
                return 0.0
            was_lingering, self._is_lingering = self._is_lingering, True
            return None if was_lingering else LINGER

    def offer(self) -> bool:
        """Whether all queues are to be requested: slots are free, and before there was none."""
        with self.changed:
            self._is_lingering = False
            if not self._is_wanted or self._num_free <= 0:
                return False
            self._is_wanted = False
            self._refused.clear()
            return True

    def wait(self, seconds: float) -> bool:
        """Wait until none is used, at most `seconds`. Returns whether none is."""
        with self.changed:
            return self.changed.wait_for(lambda: not self.num_used, timeout=seconds)

    def _has_few_free(self) -> bool:
        return self._num_free * FEW < self._number

    @property
    def _num_free(self) -> int:
        return self._number - self.num_used - self._num_reserved


class Reservation:
    """`number` slots that a lane has reserved."""

    def __init__(self, slots: Slots, number: int = 0) -> None:
        self._slots = slots
        self.number = number

    def grow(self, number: int) -> None:
        """Reserve more of those that are free, up to `number` in all."""
        if number > self.number:
            self.number += self._slots.reserve_more(number - self.number)

    def use(self, number: int) -> None:
        """Use so many of them, and release the others."""
        if self.number:
            self._slots.use(number, self.number)
        self.number = 0
