"""How many attempts a lane takes at once: as many as lately fitted into the time that it may keep them. Pure."""

import datetime as dt
import random
from collections.abc import Callable, Mapping

MOST = 500
AT_HAND = 0.02
"""Seconds of work that a lane may have claimed and not begun."""


class BatchSize:
    """A number that learns: doubled when so many took at most half of `budget` (seconds), twice when at most an eighth,
    and halved when they took more than all of it. Not from how long one of them took: on a busy machine that is mostly
    waiting."""

    def __init__(self, budget: float) -> None:
        self._budget = budget
        self.number = 1

    def note(self, number: int, seconds: float) -> None:
        """So many were done, together, in so long."""
        if seconds > self._budget:
            self.number = max(1, self.number // 2)
        elif number >= self.number and seconds <= self._budget / 2:
            self.number = min((2 if seconds > self._budget / 8 else 4) * self.number, MOST)


class BatchSizes:
    """Of one queue, on one lane: how many to claim, and how many may share a commit."""

    def __init__(self) -> None:
        self.to_claim = BatchSize(AT_HAND)
        self._to_settle: dict[float, BatchSize] = {}

    def to_settle(self, within: float) -> BatchSize:
        """Of those that are to be written within so many seconds."""
        if within not in self._to_settle:
            self._to_settle[within] = BatchSize(within)
        return self._to_settle[within]


PRIORITIES = range(10)


EARLIEST = dt.datetime.min.replace(tzinfo=dt.UTC)


DEAR = 0.01
"""Seconds; what takes no longer is done whenever it is wanted."""


SHARE = 9.0
"""What is dear is done for one part of the time, at most, to so many parts without it."""


LONGEST = 30.0
"""Seconds after which it is done again, whatever it costs."""


def spared(took: float) -> float:
    """Seconds for which something is not done again that took so long."""
    return min(SHARE * took, LONGEST) if took > DEAR else 0.0


class Cost:
    """What something costs that is done again and again: what it took lately, but not once by chance, as behind a lock.
    Whatever goes on beside it meets the same chance."""

    def __init__(self) -> None:
        self._took = self._before = 0.0
        self._ended = float("-inf")

    def note(self, took: float, *, now: float) -> float:
        """It took so many seconds until now. Seconds for which it is to be spared."""
        if now - took >= self._ended:
            self._before = self._took
        self._took, self._ended = took, now
        return spared(min(self._took, self._before))


class Marks:
    """Of one queue, shared by the lanes of a process. What is due before a mark was taken, or is late, or was given
    back: claims from the front find it, and as long as they are cheap all claims are."""

    def __init__(self) -> None:
        self._marks = dict.fromkeys(PRIORITIES, EARLIEST)
        self._front_at = 0.0
        self._front = Cost()

    def at(self, now: float) -> list[dt.datetime]:
        """Where the next claim begins, by priority; empty: at the front."""
        return [] if now >= self._front_at else [*self._marks.values()]

    def note(self, latest: Mapping[int, dt.datetime], *, now: float, front_took: float | None = None) -> None:
        """The latest of what was taken, by priority: when it was due. `front_took`: seconds that the claim took, if it
        began at the front."""
        for priority, due_at in latest.items():
            self._marks[priority] = max(self._marks[priority], due_at)
        if front_took is not None:
            self._front_at = now + self._front.note(front_took, now=now)

    def until_front(self, now: float) -> float:
        """Seconds until a claim begins at the front again."""
        return max(0.0, self._front_at - now)


FIRST = 0.005
"""Seconds until the first look of a fresh sleeper."""


class PollInterval:
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
