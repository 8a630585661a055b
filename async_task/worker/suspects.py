"""Suspects, each performed in a child process of its own.

1. Suspicion that lies on many at once says little about each: they are performed together. As one proves innocent, the
   next one starts.
2. How many run at once grows with each that returns, and with each that has run for a while and not died: one that
   kills its process mostly does so soon. A death halves it: what uses up the memory of the machine takes few along.
3. What has killed a process of its own is performed alone, when all others have ended.
4. What waits behind a call that takes long is released: another process may have room for it.
"""

import threading
import time
from collections.abc import Callable, Collection
from typing import TypeAlias

from async_task.database.lanes import Lane
from async_task.execution.prepared_call import is_coroutine_call
from async_task.queue.claim import Claim

FIRST, WIDEST = 16, 32
"""Suspects at once, at first and at most: each has a process and a connection to the database."""
PROVEN = 0.5
"""Seconds after which a suspect that still runs makes room for another one, and holds up those that wait for it."""
AGAIN = 1.0
"""Seconds after which others are looked for again, while those that were found run."""


class SuspectWidth:
    """How many suspects may run at once. Thread-safe."""

    def __init__(self, first: int = FIRST, widest: int = WIDEST) -> None:
        self.widest = widest
        self.number = first

    def note(self, *, has_died: bool) -> None:
        """One more has ended, or its process has died in its call."""
        self.number = max(1, self.number // 2) if has_died else min(self.widest, self.number + 1)

    def room(self, ages: Collection[float]) -> int:
        """How many more may start, beside those that have run for so many seconds each."""
        num_young = sum(age < PROVEN for age in ages)
        return max(0, min(self.number - num_young, self.widest - len(ages)))


Besides: TypeAlias = tuple[tuple[str, str], ...]
"""Calls, each a target and a method."""


class SuspectRun:
    """Performs suspects, until none is left.

    `claim`: claims up to a number of them on a lane, besides some calls. `perform`: brings one claim to its outcome, on
    a lane that is its own. `release`: releases claims that were not started. `end_all`: ends all their processes.
    `concurrency`: how many calls of plain functions may run at once.
    """

    def __init__(
        self, width: SuspectWidth, concurrency: int, claim: Callable[[Lane, int, Besides], list[Claim]],
        open_lane: Callable[[], Lane], perform: Callable[[Lane, Claim], object],
        release: Callable[[Lane, list[Claim]], object], end_all: Callable[[], object],
    ) -> None:  # fmt: skip
        self._width = width
        self._concurrency = concurrency
        self._claim = claim
        self._open_lane = open_lane
        self._perform = perform
        self._release = release
        self._end_all = end_all
        self._changed = threading.Condition()
        self._running: dict[threading.Thread, tuple[Claim, float]] = {}
        self._num_ended = 0
        self._error: BaseException | None = None
        self._alone: list[Claim] = []
        self._waiting: list[Claim] = []
        """Of plain functions, for which there is no room yet."""
        self._released: set[tuple[str, str]] = set()
        """What was released since the last one ended: here it would only wait again."""
        self._released_at = 0

    @property
    def unstarted(self) -> list[Claim]:
        """Claims that were not performed, and are to be released."""
        return self._waiting + self._alone

    def run(self, lane: Lane, may_start: Callable[[], bool]) -> bool:
        """Perform them, as long as `may_start`; whether there were any. Raises what a claim or performing one has
        raised, when all have ended; when it is interrupted, all are ended, and released."""
        has_found = False
        try:
            while True:
                num_ended = self._num_ended
                claims, seconds = self._claim_some(lane) if self._may_claim(may_start) else ([], AGAIN)
                has_found = has_found or bool(claims)
                if self._error is None and may_start():
                    self._start()
                if not self._running and not (claims and self._may_claim(may_start)):
                    break
                self._wait(num_ended, seconds)
                self._release_held_up(lane)
        except Exception:  # the database is away: that ends no call, and later suspects need their processes
            self._join()
            raise
        except BaseException:
            self._end_all()
            self._join()
            raise
        if self._error is not None:
            raise self._error
        while self._alone and may_start():  # only where there are no children, and then it is one
            self._perform(lane, self._alone.pop(0))
        return has_found

    def _may_claim(self, may_start: Callable[[], bool]) -> bool:
        return not (self._alone or self._runs_alone) and self._error is None and may_start()

    @property
    def _runs_alone(self) -> bool:
        with self._changed:
            return any(claim.num_crashes for claim, _ in self._running.values())

    def _claim_some(self, lane: Lane) -> tuple[list[Claim], float]:
        """What was claimed, and in how many seconds to look again."""
        if self._num_ended > self._released_at:
            self._released.clear()
        room = self._room()
        claims = self._claim(lane, room, tuple(sorted(self._released))) if room else []
        for claim in claims:
            (self._alone if claim.num_crashes or self._width.widest == 1 else self._waiting).append(claim)
        return claims, AGAIN if room and not claims else self._until_room()

    def _room(self) -> int:
        now = time.monotonic()
        with self._changed:
            ages = [now - since for _, since in self._running.values()]
        return max(0, self._width.room(ages) - len(self._waiting))

    def _start(self) -> None:
        """Coroutines at once; plain functions in their order, as soon as there is room for each; at last, one alone."""
        with self._changed:
            num_plain = sum(not is_coroutine_call(claim) for claim, _ in self._running.values())
            for claim in list(self._waiting):
                is_plain = not is_coroutine_call(claim)
                if not is_plain or num_plain < self._concurrency:
                    num_plain += is_plain
                    self._start_one(claim)
                    self._waiting.remove(claim)
            if self._alone and not self._running and self._width.widest > 1:
                self._start_one(self._alone.pop(0))

    def _start_one(self, claim: Claim) -> None:
        thread = threading.Thread(target=self._run_one, args=(claim,), name="async-task-suspect", daemon=True)
        self._running[thread] = claim, time.monotonic()
        try:
            thread.start()
        except BaseException:  # the system has no thread left
            del self._running[thread]
            raise

    def _wait(self, num_ended: int, seconds: float | None = None) -> None:
        """Until more than so many have ended, at most for so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._num_ended > num_ended or not self._running, seconds)

    def _until_room(self) -> float:
        """Seconds until one of those that run is old enough to make room."""
        with self._changed:
            lefts = [since + PROVEN - time.monotonic() for _, since in self._running.values()]
        return min((left for left in lefts if left > 0), default=AGAIN)

    def _release_held_up(self, lane: Lane) -> None:
        """Release what waits behind calls that take long: plain functions behind others, and what is performed alone
        behind any call."""
        now = time.monotonic()
        with self._changed:
            running = [(is_coroutine_call(claim), now - since) for claim, since in self._running.values()]
        plain = [age for is_coroutine, age in running if not is_coroutine]
        held_up = self._waiting if len(plain) >= self._concurrency and min(plain) >= PROVEN else []
        held_up = [*held_up, *(self._alone if any(age >= PROVEN for _, age in running) else ())]
        if held_up:
            self._release(lane, held_up)
            self._waiting = [one for one in self._waiting if one not in held_up]
            self._alone = [one for one in self._alone if one not in held_up]
            self._released.update((one.target, one.method_name) for one in held_up)
            self._released_at = self._num_ended

    def _run_one(self, claim: Claim) -> None:
        try:
            # Most children write their outcome themselves: the lane connects only if one cannot.
            with self._open_lane() as lane:
                self._perform(lane, claim)
        except BaseException as error:
            self._error = self._error or error
        finally:
            with self._changed:
                del self._running[threading.current_thread()]
                self._num_ended += 1
                self._changed.notify_all()

    def _join(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._running)
