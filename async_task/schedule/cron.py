"""Cron expressions, read as Debian's cron reads them; cronsim, of the extra `scheduler`, finds the local times.

1. Sunday is 0 and 7. A day fires when the day of the month or the day of the week matches; where one of the two begins
   with a star, both must.
2. An expression whose minute or hour begins with a star is an interval: it follows real time through a change of
   daylight saving. Any other one is a time of day, as `At`.
"""

import datetime as dt
import re
import zoneinfo
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from async_task.errors import ConfigurationError
from async_task.schedule.rules import instant_of

SECOND = dt.timedelta(seconds=1)
NICKNAMES = {
    "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@hourly": "0 * * * *",
}  # fmt: skip
FIELDS = ("minute", "hour", "day of the month", "month", "day of the week")
_ONE = r"(?:\d+|jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec|sun|mon|tue|wed|thu|fri|sat)"
# What Debian's cron reads: cronsim knows more, as L and #, and takes a step behind one value to mean "from there on".
_PART = re.compile(rf"(?:\*|({_ONE})-(?!\1/){_ONE})(?:/\d+)?|{_ONE}", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Cron:
    """The times of a cron expression in a zone. Raises ConfigurationError for one that cannot be read or never fires,
    and where cronsim is not installed."""

    expression: str
    zone: zoneinfo.ZoneInfo

    def __post_init__(self) -> None:
        _refuse_bad_fields(self.expression)
        cronsim = _cronsim()
        try:
            found = next(self.times(dt.datetime(2000, 1, 1, tzinfo=dt.UTC)), None)
        except cronsim.CronSimError as error:
            raise ConfigurationError(f"the cron expression {self.expression!r} cannot be: {_cause(error)}") from None
        if found is None:
            raise ConfigurationError(f"the cron expression {self.expression!r} never fires: there is no such date")

    def times(self, after: dt.datetime) -> Iterator[dt.datetime]:
        minute, hour, *_ = self._fields.split()
        is_interval = minute.startswith("*") or hour.startswith("*")
        return self._by_real_time(after) if is_interval else self._by_time_of_day(after)

    @property
    def in_english(self) -> str:
        """As cronsim says it: "At 02:30 every day"."""
        words: str = _cronsim().CronSim(self._fields, dt.datetime(2000, 1, 1, tzinfo=dt.UTC)).explain()
        return words

    @property
    def _fields(self) -> str:
        return NICKNAMES.get(self.expression.strip().lower(), self.expression)

    def _local_times(self, after: dt.datetime) -> Iterator[dt.datetime]:
        """The naive times that match, later than the naive `after`. What a zone makes of them is decided here, and not
        by cronsim: its answer depends on where it starts."""
        found: Iterator[dt.datetime] = _cronsim().CronSim(self._fields, after)
        return found

    def _by_time_of_day(self, after: dt.datetime) -> Iterator[dt.datetime]:
        last = after
        for local in self._local_times(after.astimezone(self.zone).replace(tzinfo=None)):
            moment = instant_of(local, self.zone)
            # Of two times that a change of daylight saving puts on one instant, or before `after`, none fires again.
            if moment > last:
                yield moment
                last = moment

    def _by_real_time(self, after: dt.datetime) -> Iterator[dt.datetime]:
        """The instants whose local time matches, from one change of the zone's offset to the next."""
        begin = since = after.astimezone(dt.UTC).replace(microsecond=0)
        while True:
            offset, is_last = _offset(since, self.zone), True
            for local in self._local_times(begin.replace(tzinfo=None) + offset):
                moment = local.replace(tzinfo=dt.UTC) - offset
                if _offset(moment, self.zone) != offset:
                    since = _change(since, moment, self.zone)
                    begin, is_last = since - SECOND, False  # the change itself may match
                    break
                yield moment
                since = moment
            if is_last:
                return

    def __str__(self) -> str:
        return f"cron {self.expression} {self.zone.key}"


def _offset(moment: dt.datetime, zone: zoneinfo.ZoneInfo) -> dt.timedelta:
    return moment.astimezone(zone).utcoffset() or dt.timedelta(0)


def _change(before: dt.datetime, after: dt.datetime, zone: zoneinfo.ZoneInfo) -> dt.datetime:
    """An instant at which the offset of `before` ends, until `after`, whose offset differs. All are whole seconds."""
    offset = _offset(before, zone)
    while after - before > SECOND:
        middle = before + (after - before) // SECOND // 2 * SECOND
        if _offset(middle, zone) == offset:
            before = middle
        else:
            after = middle
    return after


def _cronsim() -> Any:
    try:
        import cronsim
    except ModuleNotFoundError:
        raise ConfigurationError("a cron entry needs cronsim: install async-task[scheduler]") from None
    return cronsim


def _refuse_bad_fields(expression: object) -> None:
    if not isinstance(expression, str):
        raise ConfigurationError(f'a cron expression is a text, as "5 * * * *", not {expression!r}')
    fields = NICKNAMES.get(expression.strip().lower(), expression).split()
    if len(fields) != len(FIELDS):
        raise ConfigurationError(
            f"a cron expression has five fields ({', '.join(FIELDS)}), or is a word like @daily: not {expression!r}"
        )
    for name, field in zip(FIELDS, fields, strict=True):
        if not all(_PART.fullmatch(part) for part in field.split(",")):
            raise ConfigurationError(f"the cron expression {expression!r} has a bad {name}: {field!r}")


def _cause(error: Exception) -> str:
    """cronsim's words: "Bad day-of-month"."""
    field = str(error).removeprefix("Bad ")
    return f"there is no such {field.replace('-', ' ')}" if field != str(error) else str(error)
