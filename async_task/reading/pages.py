"""Pages of attempts, and counts of them: each reads a bounded part of the primary key, and says where to resume.

Ids are UUIDv7, so the primary key is in the order of creation. What a filter leaves out must be read to be left out:
so a page of a filtered list ends after SCANNED rows, however few of them it selected.
"""

import datetime as dt
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from async_task.attempts.info import AttemptInfo, facts_of, info_of
from async_task.database.clock import statement_now
from async_task.errors import ConfigurationError, near
from async_task.reading.due_pages import due_page
from async_task.reading.filters import Filters, Selection, refuse_unknown_names, with_whole_names
from async_task.schema.states import Status
from async_task.schema.tables import table_of

Order = Literal["newest", "oldest", "due", "due_last"]
"""What comes first in a list."""
MOST_ROWS = 10_000
"""How many rows a page has at most."""
SCANNED = 10_000
"""How many rows a page of a filtered list reads at most, from where the page before ended."""
COUNTED = 50_000
"""How many rows one call of `counts` reads at most."""


@dataclass(frozen=True, slots=True)
class AttemptPage:
    """A page of a list. `attempts`: in order. `next`: what `after=` takes for the page that follows; None after the
    last page. A page of a filtered list may hold fewer than `limit`, even none, and still have a `next`: see
    `Attempts.list`. `read_at`: the database's clock."""

    attempts: tuple[AttemptInfo, ...]
    next: str | None
    read_at: dt.datetime


@dataclass(frozen=True, slots=True)
class StatusCounts:
    """How many attempts are in each status, among those that were read. `next`: what `after=` takes to count those that
    follow; None where all were read."""

    by_status: Mapping[Status, int]
    next: str | None

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to count."""
        return self.next is None

    @property
    def total(self) -> int:
        return sum(self.by_status.values())


def check_limit(limit: object) -> None:
    """Raises ConfigurationError unless it is a number of rows that a page can have."""
    if type(limit) is not int or not 1 <= limit <= MOST_ROWS:
        raise ConfigurationError(f"limit is a whole number from 1 to {MOST_ROWS:,}: it was {limit!r}")


def check_cursor(after: object) -> None:
    """Raises ConfigurationError unless it is None or a text."""
    if after is not None and not isinstance(after, str):
        raise ConfigurationError(f"after takes the `next` of a page, not {type(after).__name__}")


def check_order(order: object) -> Order:
    """Raises ConfigurationError unless it is one of `Order`."""
    known: tuple[Order, ...] = get_args(Order)
    for one in known:
        if order == one:
            return one
    said = f"{order!r}{near(order, known)}" if isinstance(order, str) else repr(order)
    raise ConfigurationError(f"order is one of {', '.join(known)}: it was {said}")


def page_of(
    session: Session, model: type[Any], filters: Filters, order: Order, limit: int, after: str | None
) -> AttemptPage:
    """The page behind the cursor `after`. Raises ConfigurationError, and UnknownTarget for an unknown name."""
    filters = with_whole_names(session, table_of(model), filters)
    chosen = Selection(model, filters, clock_of(session))
    if order in ("newest", "oldest"):
        rows, following = _page_by_id(session, chosen, limit, after, is_newest=order == "newest")
    else:
        rows, following = due_page(session, chosen, limit, after, is_last=order == "due_last")
    if not rows and after is None:
        refuse_unknown_names(session, chosen)
    return AttemptPage(tuple(info_of(row, chosen.now) for row in rows), following, chosen.now)


def counts_of(session: Session, model: type[Any], filters: Filters, after: str | None) -> StatusCounts:
    """By status, among the newest. Raises as `page_of`."""
    filters = with_whole_names(session, table_of(model), filters)
    chosen = Selection(model, filters, clock_of(session))
    stretch = _stretch(session, chosen, after, COUNTED, is_newest=True)
    asked: Any = select(model.status, func.count()).where(*stretch.within, *chosen.conditions)
    rows: Any = session.execute(asked.group_by(model.status))
    found: dict[Status, int] = dict(rows.all())
    if not found and after is None:
        refuse_unknown_names(session, chosen)
    by_status = {status: found[status] for status in Status if status in found}
    return StatusCounts(by_status, stretch.next)


def clock_of(session: Session) -> dt.datetime:
    """The database's clock."""
    now: dt.datetime | None = session.scalar(select(statement_now()))
    assert now is not None
    return now


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A part of the primary key: the conditions for `within` it, and the cursor of its end; None at the table's end."""

    within: list[ColumnElement[bool]]
    next: str | None


def _page_by_id(
    session: Session, chosen: Selection, limit: int, after: str | None, *, is_newest: bool
) -> tuple[list[Any], str | None]:
    stretch = _stretch(session, chosen, after, SCANNED if chosen.is_partial else None, is_newest=is_newest)
    key = chosen.table.c.id
    found = facts_of(chosen.model).where(*stretch.within, *chosen.conditions)
    rows = list(session.execute(found.order_by(key.desc() if is_newest else key).limit(limit + 1)))
    if len(rows) > limit:
        return rows[:limit], str(rows[limit - 1].id)
    return rows, stretch.next


def _stretch(session: Session, chosen: Selection, after: str | None, most: int | None, *, is_newest: bool) -> _Stretch:
    """Behind the cursor `after`, `most` rows long; None: to the end of the table."""
    key, within = chosen.table.c.id, chosen.id_range
    if after is not None:
        within.append(key < _id_in(after) if is_newest else key > _id_in(after))
    if most is None:
        return _Stretch(within, None)
    ids = select(key).where(*within).order_by(key.desc() if is_newest else key)
    end = session.scalar(ids.limit(1).offset(most - 1))  # a bounded number of index entries
    if end is None:
        return _Stretch(within, None)
    return _Stretch([*within, key >= end if is_newest else key <= end], str(end))


def _id_in(cursor: str) -> uuid.UUID:
    try:
        return uuid.UUID(cursor)
    except ValueError:
        raise ConfigurationError(f"after takes the `next` of a page in the same order: it was {cursor!r}") from None
