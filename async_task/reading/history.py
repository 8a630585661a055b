"""What has become of the attempts of the last hours or days, by the time at which they were created.

Ids are UUIDv7, so each bucket of time is a stretch of the primary key.
"""

import datetime as dt
import itertools
import uuid
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, Table, and_, bindparam, case, func, literal_column, select, union_all
from sqlalchemy.orm import Session

from async_task.database.clock import EPOCH
from async_task.errors import ConfigurationError, near
from async_task.reading.pages import clock_of
from async_task.reading.samples import SAMPLED, Estimate, Part, Probe, estimates_of
from async_task.schema.columns import tick_of, uuid7_at
from async_task.schema.states import Status

Span = Literal["1h", "6h", "24h", "7d"]
"""How far a history goes back."""
MINUTE, HOUR = dt.timedelta(minutes=1), dt.timedelta(hours=1)
WIDTHS: dict[Span, tuple[int, dt.timedelta]] = {
    "1h": (30, 2 * MINUTE), "6h": (36, 10 * MINUTE), "24h": (48, 30 * MINUTE), "7d": (28, 6 * HOUR),
}  # fmt: skip
"""How many buckets fill a span, and how wide each is."""
COUNTED = 10_000
"""Up to how many attempts of a span are all counted."""
AHEAD = HOUR
"""By how much the clock that made an id may be ahead of the database's."""
PAGE = 50
"""How many parts one statement reads."""
ENDS = ("begin", "end")
EMPTY = uuid.UUID(int=0)
KINDS = 5


@dataclass(frozen=True, slots=True)
class HistoryBucket:
    """The attempts created from `begin` to before `end`, as they stand now: `succeeded` at the first try, succeeded at
    a later one (`retried`), `failed` or expired, `canceled`, and still `waiting` or being performed. `is_estimate`:
    whether not all of them were counted."""

    begin: dt.datetime
    end: dt.datetime
    succeeded: int
    retried: int
    failed: int
    canceled: int
    waiting: int
    is_estimate: bool

    @property
    def total(self) -> int:
        return self.succeeded + self.retried + self.failed + self.canceled + self.waiting


@dataclass(frozen=True, slots=True)
class History:
    """What has become of the attempts of a span. `buckets`: of equal width, the oldest first. They begin at the full
    minutes or hours of UTC that the width divides, so that they stay where they are while time passes; the first one
    begins before the span does, and the last one has not ended.

    Of up to 10,000 attempts all are counted. Of more, at most the first 200 of three parts of each bucket are, and what
    was not read of a bucket counts at the rate of what was. Where a burst begins, its end is looked for; one that
    begins in what was not read is not seen. `is_estimate`: whether any bucket was estimated so.

    When an attempt was created, its id says, by the clock of the process that created it. What is up to an hour ahead
    of the database's clock is in the last bucket.
    """

    span: Span
    buckets: tuple[HistoryBucket, ...]
    is_estimate: bool
    read_at: dt.datetime


def check_span(span: object) -> Span:
    """Raises ConfigurationError unless it is one of `Span`."""
    for one in WIDTHS:
        if span == one:
            return one
    said = f"{span!r}{near(span, get_args(Span))}" if isinstance(span, str) else repr(span)
    raise ConfigurationError(f"span is one of {', '.join(WIDTHS)}: it was {said}")


def history_of(session: Session, table: Table, span: Span) -> History:
    """Three statements for up to COUNTED attempts, and for more up to seven."""
    now = clock_of(session)
    begins = _begins(now, span)
    ticks = [tick_of(when) for when in (*begins, now, now + AHEAD)]
    stretches = [Part(*pair) for pair in itertools.pairwise(ticks)]
    if _are_few(session, table, ticks[0]):
        estimates = _counted(session, table, stretches)
    else:
        estimates = estimates_of(stretches, partial(_read, session, table))
    *ended, last, ahead = estimates
    all_estimates = [*ended, last + ahead]
    buckets = tuple(_bucket(begin, WIDTHS[span][1], one) for begin, one in zip(begins, all_estimates, strict=True))
    return History(span, buckets, any(one.is_estimate for one in buckets), now)


def _bucket(begin: dt.datetime, width: dt.timedelta, found: Estimate) -> HistoryBucket:
    succeeded, retried, failed, canceled, waiting = (round(number) for number in found.kinds)
    return HistoryBucket(begin, begin + width, succeeded, retried, failed, canceled, waiting, found.is_estimate)


def _begins(now: dt.datetime, span: Span) -> list[dt.datetime]:
    number, width = WIDTHS[span]
    last = now - (now - EPOCH) % width
    return [last - back * width for back in range(number, -1, -1)]


def _are_few(session: Session, table: Table, begin: int) -> bool:
    since = select(table.c.id).where(table.c.id >= uuid7_at(begin)).order_by(table.c.id)
    return session.execute(since.limit(1).offset(COUNTED)).first() is None


def _counted(session: Session, table: Table, stretches: Sequence[Part]) -> list[Estimate]:
    ids = (table.c.id >= uuid7_at(stretches[0].begin), table.c.id < uuid7_at(stretches[-1].end))
    kind = case(*((one, number) for number, one in enumerate(_kinds(table.c))))
    begins, numbers = [one.begin for one in stretches], [[0] * KINDS for _ in stretches]
    rows: Any = session.execute(select(table.c.id, kind).where(*ids))
    for key, number in rows:
        numbers[bisect_right(begins, tick_of(key)) - 1][number] += 1
    return [Estimate(one) for one in numbers]


def _read(session: Session, table: Table, parts: Sequence[Part]) -> list[Probe]:
    probes = []
    for some in (parts[start : start + PAGE] for start in range(0, len(parts), PAGE)):
        bounds = [(uuid7_at(part.begin), uuid7_at(part.end)) for part in some]
        bounds += [(EMPTY, EMPTY)] * (PAGE - len(some))
        given = {f"{name}{number}": pair[side] for number, pair in enumerate(bounds) for side, name in enumerate(ENDS)}
        found: Any = session.execute(_probes(table, SAMPLED), given)
        by_number = {number: others for number, *others in found}
        for number, part in enumerate(some):
            middle, last, *kinds = by_number[number]
            probes.append(Probe(part, [int(kind or 0) for kind in kinds], _tick(middle, part), _tick(last, part)))
    return probes


def _tick(key: uuid.UUID | None, part: Part) -> int:
    return part.begin if key is None else tick_of(key)


@cache
def _probes(table: Table, limit: int) -> Any:
    """One row for each of PAGE parts: its number, the ids in the middle and at the end of its first rows, if there are
    so many, and how many are of each kind. Made once: to make it takes longer than to execute it."""
    return union_all(*(_probe(table, number, limit) for number in range(PAGE)))


def _probe(table: Table, number: int, limit: int) -> Any:
    c = table.c
    begin, end = (bindparam(f"{name}{number}", type_=c.id.type) for name in ENDS)
    within = (c.id >= begin, c.id < end)
    middle, last = (
        select(c.id).where(*within).order_by(c.id).limit(1).offset(place - 1).scalar_subquery()
        for place in (limit // 2, limit)
    )
    rows = select(c.status, c.num_attempts).where(*within).order_by(c.id).limit(limit).subquery().c
    kinds = (func.sum(case((kind, 1), else_=0)) for kind in _kinds(rows))
    return select(literal_column(str(number)), middle, last, *kinds)


def _kinds(c: Any) -> tuple[ColumnElement[bool], ...]:
    """In the order of `HistoryBucket`."""
    has_succeeded, is_first = c.status == Status.SUCCEEDED, c.num_attempts <= 1
    return (
        and_(has_succeeded, is_first),
        and_(has_succeeded, ~is_first),
        c.status.in_((Status.FAILED, Status.EXPIRED)),
        c.status == Status.CANCELED,
        c.status == Status.PENDING,
    )
