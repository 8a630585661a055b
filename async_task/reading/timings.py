"""How long attempts wait for their first try, and how long calls take: of those that are read of `lately`."""

import datetime as dt
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Table, or_, type_coerce
from sqlalchemy.orm import Session

from async_task.database.clock import UnreadInstant
from async_task.reading.lately import Wanted, before_fronts, newest, oldest_read
from async_task.reading.pages import clock_of
from async_task.schema.states import Status
from async_task.targets.target import call_name

MOST = 10_000
"""How many starts or ends are measured at most: the last ones of those that were read."""


@dataclass(frozen=True, slots=True)
class Lags:
    """How long attempts have waited from when they were written until their first try: half of them no longer than
    `p50`, and 95 % no longer than `p95`; None where none was measured. The rest of the caller's transaction is in it.

    `number`: how many were measured: the last 10,000 starts at most, of attempts that were due when they were written,
    were started once, and have no order key. `is_complete`: whether all attempts were read; else about the newest
    10,000 were, and as many before those that are due.
    """

    number: int
    p50: dt.timedelta | None
    p95: dt.timedelta | None
    is_complete: bool
    read_at: dt.datetime


@dataclass(frozen=True, slots=True)
class CallDurations:
    """How long the last tries of one call took, from claim to outcome. `number`: how many of its attempts have
    succeeded or failed. `failed`: the share of these that failed, from 0 to 1. Of an attempt that a person has failed,
    it is the time until then."""

    target: str
    method_name: str
    number: int
    failed: float
    p50: dt.timedelta
    p95: dt.timedelta
    p99: dt.timedelta

    @property
    def call(self) -> str:
        """As `AttemptInfo.call`."""
        return call_name(self.target, self.method_name)


@dataclass(frozen=True, slots=True)
class Durations:
    """How long calls take. `by_call`: in the order of their names, of the last 10,000 ends. `is_complete`: as `Lags`
    has it."""

    by_call: tuple[CallDurations, ...]
    is_complete: bool
    read_at: dt.datetime


def lags_of(session: Session, table: Table) -> Lags:
    """A few statements; where not all attempts are read, those of `before_fronts` too."""
    c = table.c
    was_due = or_(c.scheduled_at.is_(None), c.scheduled_at <= c.created_at)
    is_first = (c.num_attempts == 1, c.attempted_at.is_not(None), c.order_key.is_(None), was_due)
    rows, is_complete, now = _last(session, table, [c.attempted_at, c.created_at], is_first)
    spans = sorted(_span(created, attempted) for _, attempted, created in rows)
    return Lags(len(spans), _at_rank(spans, 0.5), _at_rank(spans, 0.95), is_complete, now)


def durations_of(session: Session, table: Table) -> Durations:
    """The same."""
    c = table.c
    was_called = (c.status.in_((Status.SUCCEEDED, Status.FAILED)), c.attempted_at.is_not(None))
    columns = [c.completed_at, c.attempted_at, c.target, c.method_name, c.status]
    rows, is_complete, now = _last(session, table, columns, was_called)
    by_call: dict[tuple[str, str], list[tuple[dt.timedelta, bool]]] = defaultdict(list)
    for _, completed, attempted, target, method, status in rows:
        by_call[target, method].append((_span(attempted, completed), status is Status.FAILED))
    return Durations(tuple(_of_call(*call, by_call[call]) for call in sorted(by_call)), is_complete, now)


def _of_call(target: str, method: str, found: Sequence[tuple[dt.timedelta, bool]]) -> CallDurations:
    spans = sorted(span for span, _ in found)
    failed = sum(has_failed for _, has_failed in found) / len(found)
    return CallDurations(
        target, method, len(found), failed, *(spans[_rank(len(spans), share)] for share in (0.5, 0.95, 0.99))
    )


def _last(
    session: Session, table: Table, columns: Sequence[ColumnElement[Any]], conditions: Sequence[ColumnElement[bool]]
) -> tuple[list[Any], bool, dt.datetime]:
    """The last MOST by the instant in the first column, each with its id before the columns; whether all were read; and
    the database's clock."""
    now, c = clock_of(session), table.c
    cheap = [type_coerce(one, UnreadInstant()) if one.name.endswith("_at") else one for one in columns]
    wanted, oldest = Wanted([c.id, *cheap], conditions), oldest_read(session, table)
    if oldest is None:
        rows = newest(session, wanted)
    else:
        stretches = before_fronts(session, table, now, wanted)
        older = [row for stretch in stretches for row in stretch.rows if row[0] < oldest.id]
        rows = [*older, *newest(session, wanted, c.id >= oldest.id)]
    rows.sort(key=lambda row: row[1])
    return rows[-MOST:], oldest is None, now


def _span(earlier: Any, later: Any) -> dt.timedelta:
    return max(dt.timedelta(0), UnreadInstant.between(earlier, later))


def _at_rank(spans: Sequence[dt.timedelta], share: float) -> dt.timedelta | None:
    return spans[_rank(len(spans), share)] if spans else None


def _rank(number: int, share: float) -> int:
    """The place of the first one that is not less than this share of all: in order, from 0."""
    return max(0, math.ceil(share * number) - 1)
