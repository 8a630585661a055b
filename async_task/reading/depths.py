"""How much waits: by queue and by target, and for how long the oldest has been due; and how much is claimed. Counted
along the indexes of what waits and of claims, so that a queue of millions costs no more than one of thousands."""

import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Table, func, literal_column, select, union_all
from sqlalchemy.orm import Session

from async_task.queue.backlog import MOST_COUNTED, waiting_queues
from async_task.queue.predicates import PRIORITIES, is_claimed
from async_task.reading.due_pages import MOST_QUEUES
from async_task.reading.pages import clock_of
from async_task.schema.states import is_waiting

FEWEST = 100
"""How many rows of a queue's priority are read at least to tell their targets."""


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """One queue: how many attempts are `due`, how many are `waiting` to be due, and how many a worker has `claimed`.
    `oldest_due`: for how long the oldest one has been due; None where nothing is due. What waits for an earlier attempt
    of its order key is in none of these."""

    queue: str
    due: int
    waiting: int
    oldest_due: dt.timedelta | None
    claimed: int


@dataclass(frozen=True, slots=True)
class TargetDepth:
    """The same of one target, in whatever queue."""

    target: str
    due: int
    waiting: int
    oldest_due: dt.timedelta | None
    claimed: int


@dataclass(frozen=True, slots=True)
class Depths:
    """How much waits. `by_queue` and `by_target`, each in the order of the names. `is_complete`: whether every attempt
    was counted; else the numbers are lower bounds: MOST_COUNTED attempts are counted in each priority of a queue, and
    of all claims, 100 queues are read, and about 10,000 attempts are read for their targets."""

    by_queue: tuple[QueueDepth, ...]
    by_target: tuple[TargetDepth, ...]
    is_complete: bool
    read_at: dt.datetime


@dataclass(slots=True)
class _Line:
    """The numbers of one queue, by priority."""

    queue: str
    due: list[int]
    oldest: dt.datetime | None
    all: int

    @property
    def parts(self) -> int:
        """How many of its parts must be read for their targets."""
        return sum(number > 0 for number in self.due) + (self.all > sum(self.due))


def depths_of(session: Session, table: Table) -> Depths:
    """Two statements for each queue in which anything waits, and one for the claims."""
    now = clock_of(session)
    lines = [_line_of(session, table, name, now) for name in waiting_queues(session.connection(), table, MOST_QUEUES)]
    share = max(FEWEST, MOST_COUNTED // max(1, sum(line.parts for line in lines)))
    targets: dict[str, _Target] = defaultdict(_Target)
    for line in lines:
        rows: Any = session.execute(_targets_in(table, line, now, share))
        for name, is_due, number, oldest in rows:
            targets[name].add(is_due, number, oldest)
    claims = _claims(session, table)
    for (_, name), number in claims.items():
        targets[name].claimed += number
    is_counted = all(max(*line.due, line.all) < MOST_COUNTED for line in lines) and len(lines) < MOST_QUEUES
    is_read = all(max(*line.due, line.all) <= share for line in lines) and claims.total() < MOST_COUNTED
    by_target = tuple(one.as_depth(name, now) for name, one in sorted(targets.items()))
    return Depths(_by_queue(lines, claims, now), by_target, is_counted and is_read, now)


def _claims(session: Session, table: Table) -> Counter[tuple[str, str]]:
    """How many there are of each queue and target; MOST_COUNTED at most."""
    some = select(table.c.queue, table.c.target).where(*is_claimed(table)).limit(MOST_COUNTED).subquery().c
    grouped: Any = select(some.queue, some.target, func.count()).group_by(some.queue, some.target)
    rows: Any = session.execute(grouped)
    return Counter({(queue, target): number for queue, target, number in rows})


def _line_of(session: Session, table: Table, queue: str, now: dt.datetime) -> _Line:
    columns: list[Any] = []
    for priority in PRIORITIES:
        waits = _waits(table, queue, priority)
        columns.append(_count(table, [*waits, table.c.due_at <= now]).label(f"due{priority}"))
        first = select(table.c.due_at).where(*waits).order_by(table.c.due_at, table.c.id).limit(1)
        columns.append(first.scalar_subquery().label(f"first{priority}"))
    row = session.execute(select(*columns, _count(table, [*is_waiting(table), table.c.queue == queue]))).one()
    *pairs, number = row
    firsts = [first for first in pairs[1::2] if first is not None]
    return _Line(queue, [int(due) for due in pairs[::2]], min(firsts, default=None), int(number))


def _targets_in(table: Table, line: _Line, now: dt.datetime, share: int) -> Any:
    """Of one queue: how many are due, and wait, of each target."""
    parts = []
    for priority, number in zip(PRIORITIES, line.due, strict=True):
        if number:
            due = [*_waits(table, line.queue, priority), table.c.due_at <= now]
            parts.append(_grouped(table, due, share, is_due=True))
    parts.append(
        _grouped(table, [*is_waiting(table), table.c.queue == line.queue], share, is_due=False, later_than=now)
    )
    return union_all(*parts)


def _grouped(
    table: Table, conditions: Sequence[ColumnElement[bool]], limit: int, *, is_due: bool,
    later_than: dt.datetime | None = None,
) -> Any:  # fmt: skip
    c = table.c
    rows = select(c.target, c.due_at).where(*conditions).order_by(c.priority, c.due_at, c.id).limit(limit).subquery()
    kind: Any = literal_column("1" if is_due else "0").label("is_due")
    found: Any = select(rows.c.target, kind, func.count(), func.min(rows.c.due_at)).group_by(rows.c.target)
    return found if later_than is None else found.where(rows.c.due_at > later_than)


def _waits(table: Table, queue: str, priority: int) -> tuple[ColumnElement[bool], ...]:
    return (*is_waiting(table), table.c.queue == queue, table.c.priority == priority)


def _count(table: Table, conditions: Sequence[ColumnElement[bool]]) -> Any:
    some = select(table.c.id).where(*conditions).limit(MOST_COUNTED).subquery()
    return select(func.count()).select_from(some).scalar_subquery()


def _by_queue(
    lines: Sequence[_Line], claims: Mapping[tuple[str, str], int], now: dt.datetime
) -> tuple[QueueDepth, ...]:
    claimed: dict[str, int] = defaultdict(int)
    for (queue, _), number in claims.items():
        claimed[queue] += number
    found = {line.queue: _depth_of(line, claimed[line.queue], now) for line in lines}
    idle = {queue: QueueDepth(queue, 0, 0, None, claimed[queue]) for queue in claimed if queue not in found}
    return tuple(one for _, one in sorted((found | idle).items()))


def _depth_of(line: _Line, claimed: int, now: dt.datetime) -> QueueDepth:
    due = sum(line.due)
    is_any = due > 0 and line.oldest is not None
    oldest = now - line.oldest if is_any and line.oldest is not None else None
    return QueueDepth(line.queue, due, max(0, line.all - due), oldest, claimed)


class _Target:
    """The sums of one target."""

    def __init__(self) -> None:
        self.due = self.waiting = self.claimed = 0
        self.oldest: dt.datetime | None = None

    def add(self, is_due: int, number: int, oldest: dt.datetime) -> None:
        if not is_due:
            self.waiting += number
            return
        self.due += number
        self.oldest = oldest if self.oldest is None else min(self.oldest, oldest)

    def as_depth(self, name: str, now: dt.datetime) -> TargetDepth:
        oldest = None if self.oldest is None else now - self.oldest
        return TargetDepth(name, self.due, self.waiting, oldest, self.claimed)
