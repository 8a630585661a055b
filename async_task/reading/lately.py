"""The attempts of which some have ended lately: the newest, and where more wait than these, those before the fronts.

No index leads to what ended lately: every call would pay for it. So attempts are read where the last ones of a line (a
priority of a queue) have ended. Where nothing of the line is due, these are among the newest of the table. Where
something is, they stand before its front: what is claimed, or due first, since a line is worked off in the order of due
time.
"""

import datetime as dt
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Table, literal_column, select, union_all
from sqlalchemy.orm import Session

from async_task.queue.backlog import waiting_queues
from async_task.queue.predicates import PRIORITIES, is_claimed
from async_task.reading.due_pages import MOST_QUEUES
from async_task.schema.states import is_waiting

READ = 10_000
"""How many of the newest attempts are read, and about how many before those that are due."""
FEWEST = 100
"""How many are read at least before the first that is due in a line."""
AHEAD = 10
"""How many of a line's first due attempts are looked at: one alone may be a retry of what was created long ago."""
MOST_CLAIMS = 1_000
"""How many claims are looked at."""
PAGE = 50
"""How many lines one statement reads."""
Line: TypeAlias = tuple[str, int]
"""A queue and a priority."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is read of the attempts for which everything holds."""

    columns: Sequence[Any]
    conditions: Sequence[ColumnElement[bool]]

    def where(self, *within: ColumnElement[bool], number: int = 0) -> Any:
        """Each row begins with this number."""
        return select(literal_column(str(number)).label("number"), *self.columns).where(*self.conditions, *within)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Rows of a line, of the attempts that were created before its `front`. `is_cut`: whether older ones were not
    read."""

    line: Line
    front: uuid.UUID
    rows: Sequence[Any]
    is_cut: bool


def oldest_read(session: Session, table: Table) -> Any:
    """The last of the newest READ attempts, its `id` and `created_at`; None if there are no more than these."""
    return session.execute(_behind(table, READ)).one_or_none()


def newest(session: Session, wanted: Wanted, *within: ColumnElement[bool]) -> list[Any]:
    """The rows within these bounds."""
    return [row for _, *row in session.execute(wanted.where(*within))]


def before_fronts(session: Session, table: Table, now: dt.datetime, wanted: Wanted) -> Iterator[Stretch]:
    """Rows of each line in which anything is due. One statement for each queue in which anything waits, and two for
    each PAGE lines."""
    fronts = _fronts(session, table, now)
    share, lines = max(FEWEST, READ // max(1, len(fronts))), list(fronts)
    for some in (lines[start : start + PAGE] for start in range(0, len(lines), PAGE)):
        asked = [_behind(table, share, until=fronts[line], number=number) for number, line in enumerate(some)]
        oldest = {row.number: row.id for row in session.execute(_all(asked))}
        found: list[list[Any]] = [[] for _ in some]
        stretches = [
            wanted.where(*_within(table, line, oldest.get(number), fronts[line]), number=number)
            for number, line in enumerate(some)
        ]
        for number, *row in session.execute(_all(stretches)):
            found[number].append(row)
        for number, line in enumerate(some):
            yield Stretch(line, fronts[line], found[number], number in oldest)


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


def _all(selects: Sequence[Any]) -> Any:
    # Each in parentheses of its own: a part of a UNION has no LIMIT on SQLite.
    return union_all(*(select(one.subquery()) for one in selects))
