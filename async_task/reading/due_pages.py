"""Pages in the order of due time, of what waits in a queue: read along the index of each queue and priority.

Of each such line a number of rows is read, whether they are selected or not. What follows the last row read of a line
is not known; so the page ends at the nearest of these last rows, and the next one begins there.
"""

import datetime as dt
import heapq
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Table, and_, literal, literal_column, or_, select, union_all
from sqlalchemy.orm import Session

from async_task.attempts.info import facts_of
from async_task.errors import ConfigurationError
from async_task.queue.backlog import waiting_queues
from async_task.queue.predicates import PRIORITIES
from async_task.reading.filters import Selection
from async_task.schema.states import Status, is_waiting

SCANNED = 1_000
"""How many rows of each line a page of a filtered list reads at most."""
MOST_QUEUES = 100
"""How many queues are read at most."""
WAITING = frozenset({Status.PENDING.value, "due", "stuck"})
"""The statuses of what can wait in a queue."""


class Place(NamedTuple):
    """Where a row stands in the order of due time."""

    due_at: dt.datetime
    id: uuid.UUID

    def __str__(self) -> str:
        return f"{self.due_at.isoformat()},{self.id}"

    @classmethod
    def parse(cls, cursor: str) -> "Place":
        """What `str` made. Raises ConfigurationError."""
        when, _, key = cursor.rpartition(",")
        try:
            return cls(dt.datetime.fromisoformat(when).astimezone(dt.UTC), uuid.UUID(key))
        except (ValueError, OverflowError):
            raise ConfigurationError(f"after takes the `next` of a page in the same order: it was {cursor!r}") from None


def due_page(
    session: Session, chosen: Selection, limit: int, after: str | None, *, is_last: bool
) -> tuple[list[Any], str | None]:
    """The rows behind the cursor `after`, and the cursor of the page that follows. Raises ConfigurationError for a
    status of what does not wait."""
    statuses, queue = chosen.filters.statuses, chosen.filters.queue
    if statuses and not WAITING.intersection(statuses):
        raise ConfigurationError(
            f"a list by due time has only what waits in a queue, and nothing {' or '.join(statuses)}: order it by "
            "'newest' or 'oldest'"
        )
    behind = None if after is None else Place.parse(after)
    most = SCANNED if chosen.is_partial else limit + 1
    names = waiting_queues(session.connection(), chosen.table, MOST_QUEUES) if queue is None else [queue]
    lines = [line for name in names for line in _lines(session, chosen, name, behind, most, is_last=is_last)]
    ends = [_place(line[-1]) for line in lines if len(line) == most]
    end = None if not ends else max(ends) if is_last else min(ends)
    known = [_place(row) for row in _merged(lines, end, is_last=is_last) if row.is_selected]
    # The cursor is the place that was read in order: by now a row may be deleted, or due at another time.
    following = known[limit - 1] if len(known) > limit else end
    rows = _rows(session, chosen, [place.id for place in known[:limit]])
    return rows, None if following is None else str(following)


def _lines(
    session: Session, chosen: Selection, queue: str, behind: Place | None, most: int, *, is_last: bool
) -> list[list[Any]]:
    """For each priority of a queue: its next rows in order, with whether they are selected."""
    c = chosen.table.c
    order = (c.due_at.desc(), c.id.desc()) if is_last else (c.due_at, c.id)
    further = [] if behind is None else [_is_behind(chosen.table, behind, is_last=is_last)]
    is_selected = and_(*chosen.conditions) if chosen.conditions else literal(True)
    parts: list[Any] = []
    for priority in PRIORITIES:
        number: Any = literal_column(str(priority)).label("priority")
        asked: Any = select(chosen.model.id.label("id"), c.due_at, number, is_selected.label("is_selected"))
        waits = (*is_waiting(chosen.table), c.queue == queue, c.priority == priority, *further)
        parts.append(select(asked.where(*waits).order_by(*order).limit(most).subquery(f"line{priority}")))
    lines: list[list[Any]] = [[] for _ in PRIORITIES]
    for row in session.execute(union_all(*parts)):
        lines[row.priority].append(row)
    return [sorted(line, key=_place, reverse=is_last) for line in lines if line]


def _is_behind(table: Table, place: Place, *, is_last: bool) -> ColumnElement[bool]:
    due_at, key = table.c.due_at, table.c.id
    # The first half says no more than the second one, but an index can be searched by it.
    if is_last:
        return and_(due_at <= place.due_at, or_(due_at < place.due_at, key < place.id))
    return and_(due_at >= place.due_at, or_(due_at > place.due_at, key > place.id))


def _merged(lines: Sequence[Sequence[Any]], end: Place | None, *, is_last: bool) -> Iterator[Any]:
    """The rows of all lines in order, up to `end`."""
    for row in heapq.merge(*lines, key=_place, reverse=is_last):
        if end is not None and (_place(row) < end if is_last else _place(row) > end):
            return
        yield row


def _rows(session: Session, chosen: Selection, ids: Sequence[uuid.UUID]) -> list[Any]:
    if not ids:
        return []
    asked = facts_of(chosen.model).where(chosen.table.c.id.in_(ids))
    found = {row.id: row for row in session.execute(asked)}
    return [found[one] for one in ids if one in found]


def _place(row: Any) -> Place:
    return Place(row.due_at, row.id)
