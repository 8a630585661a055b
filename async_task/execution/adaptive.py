"""Numbers that adapt to measurements: how many attempts to claim and to commit together, how rarely to repeat a query,
and how long to wait. Pure: callers give the time."""

import random
from collections.abc import Callable

# Batch sizes.

MAX_BATCH_SIZE = 500
CLAIM_BUDGET = 0.05
"""Seconds of work that a lane may claim ahead. Threads wait for each other, and that is in the time of each call: with
20 ms, eight lanes claimed five calls at a time, and calls with a session were slower by a sixth."""


class BatchSize:
    """A number of attempts that take `budget` seconds at most, learned by doubling and halving.

    Count the time in calls only: with the database's time in it, a slow database got more commits to do. Learn from
    whole batches: on a busy machine a single call is mostly waiting, and every call would seem slow.
    """

    def __init__(self, budget: float) -> None:
        self._budget = budget
        self.number = 1

    def note(self, number: int, seconds: float) -> None:
        """A batch of `number` attempts took `seconds`. Halve after more than the budget, double after half of it or
        less, quadruple after an eighth or less."""
        if seconds > self._budget:
            self.number = max(1, self.number // 2)
        elif number >= self.number and seconds <= self._budget / 2:
            self.number = min((2 if seconds > self._budget / 8 else 4) * self.number, MAX_BATCH_SIZE)


class BatchSizes:
    """Of one queue on one lane: how many attempts to claim, and how many to commit together."""

    def __init__(self) -> None:
        self.num_coroutines = self.num_others = 0
        """How many of the last claim were coroutines, and how many others."""
        self.to_claim = BatchSize(CLAIM_BUDGET)
        self._to_settle: dict[float, BatchSize] = {}
        self._most = MAX_BATCH_SIZE

    @property
    def number_to_claim(self) -> int:
        """How many attempts to claim next."""
        return min(self.to_claim.number, self._most)

    def note_weight(self, number: int, weight: int, most: int) -> None:
        """A claim of `number` attempts had arguments of `weight` bytes: the next one may have `most`."""
        self._most = MAX_BATCH_SIZE if weight * MAX_BATCH_SIZE <= most * number else max(1, most * number // weight)

    def to_settle(self, within: float) -> BatchSize:
        """Of calls that are committed within so many seconds."""
        if within not in self._to_settle:
            self._to_settle[within] = BatchSize(within)
        return self._to_settle[within]


# Queries that are expensive now and then.

CHEAP = 0.01
"""Seconds. A query that takes no longer is repeated whenever it is wanted."""
REST = 9.0
"""An expensive query is not repeated for so many times its duration: it takes a tenth of the time at most."""
LONGEST_REST = 30.0
"""Seconds after which it is repeated, however expensive it is."""


def rest_after(seconds: float) -> float:
    """Seconds for which a query that took `seconds` is not repeated."""
    return min(REST * seconds, LONGEST_REST) if seconds > CHEAP else 0.0


class QueryCost:
    """How long a repeated query takes: the shorter of its last two durations, since one may have waited for a lock.
    Runs at the same time count as one: they wait for the same lock."""

    def __init__(self) -> None:
        self._last = self._before = 0.0
        self._ended = float("-inf")

    def note(self, seconds: float, *, now: float) -> float:
        """A run took `seconds` and ended `now`. Returns the seconds for which the query should not be repeated."""
        if now - seconds >= self._ended:
            self._before = self._last
        self._last, self._ended = seconds, now
        return self.rest

    @property
    def rest(self) -> float:
        """Seconds for which the query should not be repeated after its last run."""
        return rest_after(min(self._last, self._before))


FIRST_SEARCH_REST, LAST_SEARCH_REST, LONGEST_SEARCH_REST = 0.05, 0.4, 1.0
"""Seconds: after a search that found something, after several that found nothing, and after one that took long."""


class OtherCalls:
    """When a queue is searched again for calls that are no coroutines, while no further coroutine can be started. Such
    a search walks over all coroutines that wait there. So after one that found less than it wanted, there is a rest,
    which is longer after each one that found nothing. Shared by the lanes of a process."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}
        self._steps: dict[str, float] = {}

    def forget(self, queue: str) -> None:
        """No coroutine waits there."""
        self._at.pop(queue, None)
        self._steps.pop(queue, None)

    def rest_of(self, queue: str, now: float) -> float:
        """Seconds until the queue may be searched."""
        return max(0.0, self._at.get(queue, now) - now)

    def note(self, queue: str, number: int, seconds: float, *, now: float) -> float:
        """A search that took `seconds` found `number`, less than it wanted. Returns the seconds of the rest. Searches
        at the same time count as one."""
        if rest := self.rest_of(queue, now):
            return rest
        step = FIRST_SEARCH_REST if number else self._steps.get(queue, FIRST_SEARCH_REST)
        self._steps[queue] = min(2 * step, LAST_SEARCH_REST)
        self._at[queue] = now + min(max(step, REST * seconds), LONGEST_SEARCH_REST)
        return self._at[queue] - now


# Waiting.

FIRST_POLL = 0.005
"""Seconds from an empty poll to the next one, at first."""


TOLD = 3.5
"""How many times longer a worker waits that is notified, and knows when the next attempt is due."""


class PollInterval:
    """Seconds to wait until the next poll: 0 after one that found something, then 5, 10, 20 ... ms up to `poll`.

    Each wait is up to a quarter shorter or longer. At `poll` it is 3 %: so idle processes do not poll in step, poll as
    often as configured on average, and 99 of 100 attempts wait no longer than the longest wait. `draw` returns 0 to 1.
    """

    def __init__(self, poll: float, draw: Callable[[], float] = random.random) -> None:
        self._poll = poll
        self._draw = draw
        self._step = FIRST_POLL
        self._has_found = False

    def found(self) -> None:
        """The last poll found something: poll again at once."""
        self._has_found = True

    def notified(self) -> None:
        """A notification came: if the next poll finds nothing, the attempt is visible in a moment."""
        self._step = FIRST_POLL

    def next(self, *, is_told: bool = False) -> float:
        """How many seconds to wait now. `is_told`: of what becomes due, so that the longest wait may be longer."""
        if self._has_found:
            self._has_found, self._step = False, FIRST_POLL
            return 0.0
        step, self._step = self._step, min(self._step * 2, max(self._poll, FIRST_POLL))
        is_longest = step >= self._poll
        longest = self._poll * TOLD if is_told else self._poll
        return self._with_jitter(longest, 0.03) if is_longest else min(self._with_jitter(step, 0.25), self._poll)

    def _with_jitter(self, seconds: float, share: float) -> float:
        return seconds * (1 + share * (2 * self._draw() - 1))
