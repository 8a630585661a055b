"""The states of a row that is its own job, each defined once: as a condition in SQL, and for a row that is at hand.

A definition combines conditions by `&` and `|`, which are SQL if they are of columns, and True or False if they are of
values.
"""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from async_task.database.clock import held_in, statement_now

Condition = Any
"""A condition in SQL; True or False for a row."""
NONE = dt.timedelta(0)
Now = Callable[[float], Any]
"""The instant that is a number of seconds after now, in SQL."""


class Moment(Protocol):
    """An instant of a row, which may be null; `ago`: so long before now."""

    def is_null(self) -> Condition: ...
    def is_set(self) -> Condition: ...
    def is_before(self, ago: dt.timedelta) -> Condition: ...
    def is_until(self, ago: dt.timedelta) -> Condition: ...
    def is_after(self, ago: dt.timedelta) -> Condition: ...


M = TypeVar("M", bound=Moment)


@dataclass(frozen=True, slots=True)
class Stored:
    """The moment that a column holds."""

    column: Any
    now: Now

    def is_null(self) -> Condition:
        return self.column.is_(None)

    def is_set(self) -> Condition:
        return self.column.is_not(None)

    def is_before(self, ago: dt.timedelta) -> Condition:
        return self.column < self._then(ago)

    def is_until(self, ago: dt.timedelta) -> Condition:
        return self.column <= self._then(ago)

    def is_after(self, ago: dt.timedelta) -> Condition:
        return self.column > self._then(ago)

    def _then(self, ago: dt.timedelta) -> Any:
        return held_in(self.now(-ago.total_seconds()), self.column)


@dataclass(frozen=True, slots=True)
class Known:
    """The moment that was read of a row; a naive one is in UTC."""

    value: Any
    now: dt.datetime

    def is_null(self) -> bool:
        return self.value is None

    def is_set(self) -> bool:
        return self.value is not None

    def is_before(self, ago: dt.timedelta) -> bool:
        return self.is_set() and self._value < self.now - ago

    def is_until(self, ago: dt.timedelta) -> bool:
        return self.is_set() and self._value <= self.now - ago

    def is_after(self, ago: dt.timedelta) -> bool:
        return self.is_set() and self._value > self.now - ago

    @property
    def _value(self) -> dt.datetime:
        value: dt.datetime = self.value
        return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value


@dataclass(frozen=True, slots=True)
class Scopes(Generic[M]):
    """The six columns of a class, or their values in a row, and what can be said of them."""

    submitted_at: M
    last_submitted_at: M
    attempted_at: M
    processed_at: M
    canceled_at: M
    error: M
    interval: dt.timedelta
    window: dt.timedelta

    def unexpired(self) -> Condition:
        return self.last_submitted_at.is_after(self.window)

    def canceled(self) -> Condition:
        return self.canceled_at.is_set()

    def processed(self) -> Condition:
        return self.processed_at.is_set()

    def processed_or_canceled(self) -> Condition:
        return self.processed() | self.canceled()

    def open(self) -> Condition:
        """Neither processed nor canceled."""
        return self.processed_at.is_null() & self.canceled_at.is_null()

    def processable(self) -> Condition:
        return self.last_submitted_at.is_until(NONE) & self.open()

    def never_attempted(self) -> Condition:
        return self.attempted_at.is_null() & self.last_submitted_at.is_until(self.interval)

    def previously_attempted_ready_for_retry(self) -> Condition:
        return self.attempted_at.is_before(self.interval)

    def attemptable(self) -> Condition:
        is_ready = self.previously_attempted_ready_for_retry() | self.never_attempted()
        return is_ready & self.canceled_at.is_null()

    def workable(self) -> Condition:
        """What a job would process now, however long ago it was attempted."""
        return self.processable() & self.unexpired()

    def requires_processing(self) -> Condition:
        return self.workable() & self.attemptable()

    def expired_without_processing(self) -> Condition:
        return self.open() & self.last_submitted_at.is_until(self.window)

    def attempted_without_being_submitted(self) -> Condition:
        return self.attempted_at.is_until(NONE) & self.last_submitted_at.is_null()

    def with_error(self) -> Condition:
        return self.error.is_set()

    def potentially_stuck(self) -> Condition:
        is_odd = self.processable() | self.with_error() | self.attempted_without_being_submitted()
        return is_odd & self.canceled_at.is_null()

    def attempted(self) -> Condition:
        return self.attempted_at.is_set()

    def submitted(self) -> Condition:
        return self.submitted_at.is_set()

    def submitted_and_ready(self) -> Condition:
        return self.submitted() & self.last_submitted_at.is_until(NONE)

    def submitted_not_processed(self) -> Condition:
        return self.submitted() & self.processed_at.is_null()


def of_columns(
    columns: dict[str, Any], interval: dt.timedelta, window: dt.timedelta, now: Now = statement_now
) -> Scopes[Stored]:
    """The conditions in SQL. `now`: the clock; left out, the database's, at the beginning of the statement."""
    return Scopes(**{name: Stored(column, now) for name, column in columns.items()}, interval=interval, window=window)


def of_values(values: dict[str, Any], interval: dt.timedelta, window: dt.timedelta, now: dt.datetime) -> Scopes[Known]:
    """What is so for a row with these values."""
    return Scopes(**{name: Known(value, now) for name, value in values.items()}, interval=interval, window=window)
