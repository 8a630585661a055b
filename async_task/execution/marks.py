"""How far into a queue claims have come. While somebody holds an old snapshot, the index keeps all that was taken
since, and a claim that begins at the front walks over it. Pure."""

import datetime as dt
from collections.abc import Mapping

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
