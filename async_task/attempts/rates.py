"""How many attempts end a second: by queue and by target.

No index leads to what ended lately: every call would pay for it. So attempts are read where the last ones of a line (a
priority of a queue) have ended. Where nothing of the line is due, these are among the newest of the table. Where
something is, they stand before its front: what is claimed, or due first, since a line is worked off in the order of due
time.
"""

import datetime as dt
import itertools
import statistics
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import ColumnElement, Table, literal_column, select, union_all
from sqlalchemy.orm import Session

from async_task.attempts.due_pages import MOST_QUEUES, PRIORITIES
from async_task.attempts.pages import clock_of
from async_task.queue.backlog import waiting_queues
from async_task.queue.predicates import is_claimed
from async_task.schema.states import Status, is_waiting

READ = 10_000
"""How many of the newest attempts are read, and about how many before those that are due."""
FEWEST = 100
"""How many are read at least before the first that is due in a line."""
AHEAD = 10
"""How many of a line's first due attempts are looked at: one alone may be a retry of what was created long ago."""
EDGE = 20
"""How many of the oldest ends that were read of a line tell since when all are known; of less than 200, a tenth."""
MOST_CLAIMS = 1_000
"""How many claims are looked at."""
PAGE = 50
"""How many lines one statement reads."""
MINUTE, QUARTER = dt.timedelta(minutes=1), dt.timedelta(minutes=15)
SHORTEST = dt.timedelta(seconds=1)
"""The least time over which is counted."""
Line: TypeAlias = tuple[str, int]
"""A queue and a priority."""


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
    """The same of one target, in whatever queue."""

    target: str
    minute: Rate
    quarter: Rate


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
    """A few statements; where not all attempts are read, one more for each queue in which anything waits, and two for
    each PAGE lines in which anything is due."""
    now = clock_of(session)
    oldest = session.execute(_behind(table, READ)).one_or_none()
    if oldest is None:
        parts = [_Part(_newest(session, table, now), now - QUARTER)]
    else:
        stretches = list(_before_fronts(session, table, now))
        newest = _newest(session, table, now, table.c.id >= oldest.id)
        parts = list(_parts(newest, oldest, stretches, now))
    minute, quarter = (_Sums(parts, now - span, now) for span in (MINUTE, QUARTER))
    by_queue = tuple(QueueRate(name, minute.of(queue=name), quarter.of(queue=name)) for name in quarter.queues)
    by_target = tuple(TargetRate(name, minute.of(target=name), quarter.of(target=name)) for name in quarter.targets)
    return Rates(by_queue, by_target, minute.of(), quarter.of(), oldest is None, now)


@dataclass(frozen=True, slots=True)
class _Stretch:
    """The ends of a line among the attempts that were created before its `front`. `is_cut`: whether older ones were not
    read."""

    line: Line
    front: uuid.UUID
    ends: Sequence[_End]
    is_cut: bool


def _parts(newest: Sequence[_End], oldest: Any, stretches: Sequence[_Stretch], now: dt.datetime) -> Iterator[_Part]:
    """`oldest`: that of the newest which were read. Each end is in one part."""
    by_line: dict[Line, list[_End]] = defaultdict(list)
    for one in newest:
        by_line[one.line].append(one)
    for stretch in stretches:
        recent = by_line.pop(stretch.line, [])
        older = [one for one in stretch.ends if one.id < oldest.id]
        if stretch.front < oldest.id:  # between the two, nothing was read: it waits, but for what has overtaken others
            yield _Part(recent, oldest.created_at)
            recent = []
        ends = [*older, *recent]
        yield _Part(ends, _known_since(ends) if ends and stretch.is_cut else now - QUARTER)
    yield _Part([one for ends in by_line.values() for one in ends], oldest.created_at)


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


def _newest(session: Session, table: Table, now: dt.datetime, *within: ColumnElement[bool]) -> list[_End]:
    found = session.execute(_ended(table, [table.c.completed_at > now - QUARTER, *within]))
    return list(itertools.starmap(_End, found))


def _fronts(session: Session, table: Table, now: dt.datetime) -> Mapping[Line, uuid.UUID]:
    """Of each line in which anything is due: the last created of its first due attempts and its claims. What is due
    first may be what nobody can perform; then the claims tell how far the line is."""
    c = table.c
    fronts: dict[Line, uuid.UUID] = {}
    for queue in waiting_queues(session.connection(), table, MOST_QUEUES):
        parts: list[Any] = []
        for priority in PRIORITIES:
            is_due = (*is_waiting(table), c.queue == queue, c.priority == priority, c.due_at <= now)
            first: Any = select(literal_column(str(priority)).label("priority"), c.id).where(*is_due)
            parts.append(first.order_by(c.due_at, c.id).limit(AHEAD))
        rows: Any = session.execute(_all(parts))
        for priority, attempt_id in rows:
            fronts[queue, priority] = max(attempt_id, fronts.get((queue, priority), attempt_id))
    claims: Any = session.execute(select(c.queue, c.priority, c.id).where(*is_claimed(table)).limit(MOST_CLAIMS))
    for queue, priority, attempt_id in claims:
        if (queue, priority) in fronts:
            fronts[queue, priority] = max(attempt_id, fronts[queue, priority])
    return fronts


def _before_fronts(session: Session, table: Table, now: dt.datetime) -> Iterator[_Stretch]:
    fronts = _fronts(session, table, now)
    share, lines = max(FEWEST, READ // max(1, len(fronts))), list(fronts)
    for some in (lines[start : start + PAGE] for start in range(0, len(lines), PAGE)):
        asked = [_behind(table, share, until=fronts[line], number=number) for number, line in enumerate(some)]
        oldest = {some[row.number]: row.id for row in session.execute(_all(asked))}
        stretches = [_ended(table, _within(table, line, oldest.get(line), fronts[line])) for line in some]
        ends: dict[Line, list[_End]] = {line: [] for line in some}
        for one in itertools.starmap(_End, session.execute(_all(stretches))):
            ends[one.line].append(one)
        for line in some:
            yield _Stretch(line, fronts[line], ends[line], line in oldest)


def _known_since(ends: Sequence[_End]) -> dt.datetime:
    """Before that, others of the line have ended, which were created before these. Attempts that are started in turn
    end nearly in turn, but for one that was canceled long before, or retried long after."""
    number = max(1, min(EDGE, len(ends) // 10))
    return statistics.median_high(one.completed_at for one in sorted(ends)[:number])


def _within(table: Table, line: Line, oldest: uuid.UUID | None, front: uuid.UUID) -> list[ColumnElement[bool]]:
    queue, priority = line
    within = [table.c.id <= front] if oldest is None else [table.c.id <= front, table.c.id >= oldest]
    return [*within, table.c.queue == queue, table.c.priority == priority]


def _behind(table: Table, number_read: int, *, until: uuid.UUID | None = None, number: int = 0) -> Any:
    """The last of the newest attempts that are read, if there are so many: its number, id and creation."""
    c = table.c
    found: Any = select(literal_column(str(number)).label("number"), c.id, c.created_at)
    within = [] if until is None else [c.id <= until]
    return found.where(*within).order_by(c.id.desc()).limit(1).offset(number_read - 1)


def _ended(table: Table, conditions: Sequence[ColumnElement[bool]]) -> Any:
    c = table.c
    found: Any = select(c.id, c.queue, c.priority, c.target, c.status, c.completed_at)
    return found.where(c.completed_at.is_not(None), *conditions)


def _all(selects: Sequence[Any]) -> Any:
    # Each in parentheses of its own: a part of a UNION has no LIMIT on SQLite.
    return union_all(*(select(one.subquery()) for one in selects))
