"""The pace at which a lane looks for work: at once while it finds some, then less and less often. Pure."""

import random
from collections.abc import Callable

FIRST = 0.005
"""Seconds until the first look of a fresh sleeper."""


class Pace:
    """Seconds to wait until the next look: none after something was found, then 5, 10, 20 ... ms up to `poll`.

    Each is up to a quarter shorter or longer; at `poll`, up to 3 %: processes that idle do not come to look together,
    they look as often as they were told, and 99 of 100 rows wait no longer than `poll`. `draw()`: from 0 to 1.
    """

    def __init__(self, poll: float, draw: Callable[[], float] = random.random) -> None:
        self._poll = poll
        self._draw = draw
        self._step = FIRST
        self._has_found = False

    def found(self) -> None:
        """The last look found something: look again at once."""
        self._has_found = True

    def rung(self) -> None:
        """Something is said to be there: if the next look finds nothing, it comes in a moment."""
        self._step = FIRST

    def next(self) -> float:
        """How many seconds to wait now."""
        if self._has_found:
            self._has_found, self._step = False, FIRST
            return 0.0
        step, self._step = self._step, min(self._step * 2, max(self._poll, FIRST))
        is_settled = step >= self._poll
        return self._jittered(self._poll, 0.03) if is_settled else min(self._jittered(step, 0.25), self._poll)

    def _jittered(self, seconds: float, share: float) -> float:
        return seconds * (1 + share * (2 * self._draw() - 1))
