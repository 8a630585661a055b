"""The rows of one class in the order of a list of jobs, as statements that walk along an index."""

import datetime as dt
import json
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, and_, inspect, literal, or_
from sqlalchemy.orm import Session

from async_task.asyncable.asyncable import Asyncable
from async_task.asyncable.chain import name_of
from async_task.asyncable.columns import columns_of
from async_task.asyncable.job_filters import JobFilters, Stage
from async_task.asyncable.job_rows import JobRow, columns_of_rows, read_rows
from async_task.asyncable.scopes import NONE, Scopes, Stored, of_columns
from async_task.database.clock import Instant, held_in
from async_task.database.index_order import order_after_nulls
from async_task.errors import ConfigurationError, InvalidArguments
from async_task.reading.row_keys import key_in_full, key_meant

EARLIEST = dt.datetime.min.replace(tzinfo=dt.UTC)


class Place(NamedTuple):
    """Where a row stands in the order of a list. `submitted_at`: last; EARLIEST outside of the first stage. `key`: as
    text; rows of one class and instant are in the order of their keys in the database."""

    stage: Stage
    submitted_at: dt.datetime
    model: str
    key: str

    def __str__(self) -> str:
        return json.dumps([self.stage.value, self.submitted_at.isoformat(), self.model, self.key])

    @classmethod
    def parse(cls, cursor: str) -> "Place":
        """What `str` made. Raises ConfigurationError."""
        try:
            stage, submitted_at, model, key = json.loads(cursor)
            at = dt.datetime.fromisoformat(submitted_at).astimezone(dt.UTC)
            place = cls(Stage(stage), at, str(model), str(key))
        except (ValueError, TypeError, OverflowError):
            raise ConfigurationError(f"after takes the `next` of a page of jobs: it was {cursor!r}") from None
        return place

    @property
    def order(self) -> tuple[dt.datetime, str]:
        """What is compared within a stage, of rows of several classes."""
        return self.submitted_at, self.model


class Listed(NamedTuple):
    """A row of a list."""

    model: type[Asyncable]
    row: JobRow
    place: Place


def line(
    session: Session, model: type[Asyncable], filters: JobFilters, stage: Stage, behind: Place | None,
    now: dt.datetime, most: int,
) -> list[Listed]:  # fmt: skip
    """The next `most` rows of this class. `now`: by which the states are told apart in which they must be."""
    wanted = statement(model, filters, stage, behind, now)
    if wanted is None:
        return []
    return [
        Listed(model, row, _place(model, stage, row)) for row in read_rows(session, model, wanted.limit(most))
    ]  # fmt: skip


def statement(model: type[Asyncable], filters: JobFilters, stage: Stage, behind: Place | None, now: dt.datetime) -> Any:
    """The rows of this class in this stage behind a place, in order; None if there are none. Those of the last stage
    are among others: no index has them alone."""
    if behind is not None and stage is not Stage.SUBMITTED and name_of(model) < behind.model:
        return None
    key, c = inspect(model).primary_key, columns_of(model)
    rows, can = columns_of_rows(model), _conditions(model, now)
    if stage is Stage.SUBMITTED:
        oldest_first = order_after_nulls(c["processed_at"], c["canceled_at"], c["last_submitted_at"])
        rows = rows.where(can.open(), *_within(can, filters.states)).order_by(oldest_first, *key)
    else:
        never = [can.open(), can.last_submitted_at.is_null()] if stage is Stage.NEVER_SUBMITTED else []
        rows = rows.where(*never).order_by(*key)
    return rows if behind is None else rows.where(*_behind(model, stage, behind))


def _conditions(model: type[Asyncable], now: dt.datetime) -> Scopes[Stored]:
    def at(seconds: float) -> Any:
        return literal(now + dt.timedelta(seconds=seconds), Instant())

    return of_columns(columns_of(model), model.processing.interval, model.processing.window, at)


def _within(can: Scopes[Stored], states: frozenset[str]) -> list[ColumnElement[bool]]:
    """Between which submissions open rows in these states are."""
    last, is_late, is_timely = can.last_submitted_at, states & {"running", "expired"}, states & {"queued", "failing"}
    bounds: list[ColumnElement[bool]] = []
    if not is_late:
        bounds.append(can.unexpired() if is_timely else last.is_after(NONE))
    if "waiting" not in states:
        bounds.append(last.is_until(NONE if is_timely or "running" in states else can.window))
    return bounds or [last.is_set()]


def _behind(model: type[Asyncable], stage: Stage, place: Place) -> list[ColumnElement[bool]]:
    name, column = name_of(model), columns_of(model)["last_submitted_at"]
    same = [_key_behind(model, place.key)] if name == place.model else []
    if stage is not Stage.SUBMITTED:
        return same
    at = held_in(literal(place.submitted_at, Instant()), column)
    if name < place.model:
        return [column > at]
    # The first condition says no more than the second one, but an index can be searched by it.
    return [column >= at, *(or_(column > at, one) for one in same)]


def _key_behind(model: type[Asyncable], text: str) -> ColumnElement[bool]:
    try:
        key = key_meant(model, text)
    except InvalidArguments as error:
        raise ConfigurationError(f"after takes the `next` of a page of jobs: {error}") from None
    columns, values = inspect(model).primary_key, key if isinstance(key, tuple) else (key,)
    *before, (last, value) = zip(columns, values, strict=True)
    condition: ColumnElement[bool] = last > value
    for column, given in reversed(before):
        condition = and_(column >= given, or_(column > given, condition))
    return condition


def _place(model: type[Asyncable], stage: Stage, row: JobRow) -> Place:
    last = row.said.last_submitted_at.value if stage is Stage.SUBMITTED else EARLIEST
    return Place(stage, last, name_of(model), key_in_full(model, row.key))
