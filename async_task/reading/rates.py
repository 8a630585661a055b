"""How many attempts end a second: by queue and by target, of those that are read of `lately`."""

import datetime as dt
import itertools
import statistics
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Table
from sqlalchemy.orm import Session

from async_task.reading.lately import Line, Stretch, Wanted, before_fronts, newest, oldest_read
from async_task.reading.pages import clock_of
from async_task.schema.states import Status

EDGE = 20
"""How many of the oldest ends that were read of a line tell since when all are known; of less than 200, a tenth."""
MINUTE, QUARTER = dt.timedelta(minutes=1), dt.timedelta(minutes=15)
MINUTES = QUARTER // MINUTE
SHORTEST = dt.timedelta(seconds=1)
"""The least time over which is counted."""


@dataclass(frozen=True, slots=True)
class Rate:
    """How many attempts `ended` a second, however they ended; and how many of these `failed`."""

    ended: float
    failed: float


@dataclass(frozen=True, slots=True)
class QueueRate:
    """One queue: its rate over the last `minute`, and over the last `quarter` of an hour."""

    queue: str
    minute: Rate
    quarter: Rate


@dataclass(frozen=True, slots=True)
class TargetRate:
    """The same of one target, in whatever queue. `by_minute`: how many of its attempts ended in each of the last 15
    minutes, the oldest first; None for a minute of which not all that ended were read."""

    target: str
    minute: Rate
    quarter: Rate
    by_minute: tuple[int | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Rates:
    """How many attempts end a second. `by_queue` and `by_target`: those in which any ended within 15 minutes, each in
    the order of the names; `minute` and `quarter`: of all together, over these times.

    `is_complete`: whether all attempts were read. Else the newest 10,000 were, and about as many before those that are
    due. Where more end in a minute, or in 15, a rate is that of the time since the oldest one that was read. What was
    created before these, and waited for its time or a retry, is not counted. And more than 10,000 due attempts hide
    what ends of their queue and priority while nothing of it is claimed, if the first of them are not performed.
    """

    by_queue: tuple[QueueRate, ...]
    by_target: tuple[TargetRate, ...]
    minute: Rate
    quarter: Rate
    is_complete: bool
    read_at: dt.datetime


class _End(NamedTuple):
    """An attempt that has ended."""

    id: uuid.UUID
    queue: str
    priority: int
    target: str
    status: Status
    completed_at: dt.datetime

    @property
    def line(self) -> Line:
        return self.queue, self.priority


@dataclass(frozen=True, slots=True)
class _Part:
    """Attempts that have ended. `since`: all that ended since then are among them."""

    ends: Sequence[_End]
    since: dt.datetime


def rates_of(session: Session, table: Table) -> Rates:
    """A few statements; where not all attempts are read, those of `before_fronts` too."""
    now = clock_of(session)
    c, oldest = table.c, oldest_read(session, table)
    columns = (c.id, c.queue, c.priority, c.target, c.status, c.completed_at)
    lately = Wanted(columns, [c.completed_at.is_not(None), c.completed_at > now - QUARTER])
    if oldest is None:
        parts = [_Part(_ends(newest(session, lately)), now - QUARTER)]
    else:
        stretches = list(before_fronts(session, table, now, Wanted(columns, [c.completed_at.is_not(None)])))
        parts = list(_parts(_ends(newest(session, lately, c.id >= oldest.id)), oldest, stretches, now))
    minute, quarter = (_Sums(parts, now - span, now) for span in (MINUTE, QUARTER))
    by_queue = tuple(QueueRate(name, minute.of(queue=name), quarter.of(queue=name)) for name in quarter.queues)
    minutes = _by_minute(parts, now)
    by_target = tuple(
        TargetRate(name, minute.of(target=name), quarter.of(target=name), minutes[name]) for name in quarter.targets
    )
    return Rates(by_queue, by_target, minute.of(), quarter.of(), oldest is None, now)


def _ends(rows: Sequence[Any]) -> list[_End]:
    return list(itertools.starmap(_End, rows))


def _parts(newest: Sequence[_End], oldest: Any, stretches: Sequence[Stretch], now: dt.datetime) -> Iterator[_Part]:
    """`oldest`: that of the newest which were read. Each end is in one part."""
    by_line: dict[Line, list[_End]] = defaultdict(list)
    for one in newest:
        by_line[one.line].append(one)
    for stretch in stretches:
        recent = by_line.pop(stretch.line, [])
        older = [one for one in _ends(stretch.rows) if one.id < oldest.id]
        if stretch.front < oldest.id:  # between the two, nothing was read: it waits, but for what has overtaken others
            yield _Part(recent, oldest.created_at)
            recent = []
        ends = [*older, *recent]
        yield _Part(ends, _known_since(ends) if ends and stretch.is_cut else now - QUARTER)
    yield _Part([one for ends in by_line.values() for one in ends], oldest.created_at)


def _by_minute(parts: Sequence[_Part], now: dt.datetime) -> dict[str, tuple[int | None, ...]]:
    """By target. The numbers of a minute are known where every part with attempts of the target was read so far."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0] * MINUTES)
    known: dict[str, dt.datetime] = defaultdict(lambda: now - QUARTER)
    for part in parts:
        for one in part.ends:
            number = int((one.completed_at - now + QUARTER) // MINUTE)
            if 0 <= number < MINUTES:
                counts[one.target][number] += 1
            known[one.target] = max(known[one.target], part.since)
    return {
        name: tuple(
            count if now - QUARTER + number * MINUTE >= known[name] else None for number, count in enumerate(found)
        )
        for name, found in counts.items()
    }


class _Sums:
    """The rates from `begin` until now, by queue and target."""

    def __init__(self, parts: Sequence[_Part], begin: dt.datetime, now: dt.datetime) -> None:
        self._ended: dict[tuple[str, str], float] = defaultdict(float)
        self._failed: dict[tuple[str, str], float] = defaultdict(float)
        for part in parts:
            since = max(part.since, begin)
            each = 1 / max(now - since, SHORTEST).total_seconds()
            for one in part.ends:
                if one.completed_at > since:
                    self._ended[one.queue, one.target] += each
                    self._failed[one.queue, one.target] += each * (one.status == Status.FAILED)

    @property
    def queues(self) -> list[str]:
        return sorted({queue for queue, _ in self._ended})

    @property
    def targets(self) -> list[str]:
        return sorted({target for _, target in self._ended})

    def of(self, queue: str | None = None, target: str | None = None) -> Rate:
        meant = [one for one in self._ended if queue in (None, one[0]) and target in (None, one[1])]
        return Rate(sum(self._ended[one] for one in meant), sum(self._failed[one] for one in meant))


def _known_since(ends: Sequence[_End]) -> dt.datetime:
    """Before that, others of the line have ended, which were created before these. Attempts that are started in turn
    end nearly in turn, but for one that was canceled long before, or retried long after."""
    number = max(1, min(EDGE, len(ends) // 10))
    return statistics.median_high(one.completed_at for one in sorted(ends)[:number])
