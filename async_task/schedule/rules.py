"""When an entry fires: fixed intervals, and times of day. Pure: no clock and no I/O. (`cron.py` has the third rule.)

Each rule answers with instants in UTC. A time of day that a change of daylight saving leaves out fires at the next
instant that exists; one that comes twice fires the first time. Intervals are counted in UTC.
"""

import contextlib
import datetime as dt
import re
import zoneinfo
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Protocol

from async_task.errors import ConfigurationError, near
from async_task.targets.retry import LONGEST

ANCHOR = dt.datetime(1970, 1, 5, tzinfo=dt.UTC)
"""The instant from which intervals are counted: midnight of a Monday."""
SHORTEST = dt.timedelta(seconds=1)
MINUTE = dt.timedelta(minutes=1)
DAY = dt.timedelta(days=1)
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
UNITS = {"week": 604_800, "day": 86_400, "hour": 3600, "minute": 60, "second": 1}


class Rule(Protocol):
    """When an entry fires. `zone`: the one that it is written in; `str()` says it in words."""

    @property
    def zone(self) -> zoneinfo.ZoneInfo: ...

    def times(self, after: dt.datetime) -> Iterator[dt.datetime]:
        """The fire times later than `after`, each once, in order."""
        ...


UTC = zoneinfo.ZoneInfo("UTC")


@dataclass(frozen=True, slots=True)
class Every:
    """Each multiple of `interval` since ANCHOR: the same times whenever and wherever a clock starts."""

    interval: dt.timedelta

    def __post_init__(self) -> None:
        if self.interval < SHORTEST:
            raise ConfigurationError(f"an interval is at least 1 s, and was {self.interval.total_seconds():g} s")
        if self.interval > LONGEST:  # its next time could be later than the calendar goes
            raise ConfigurationError(f"an interval is at most a thousand years, and was {self.interval.days} days")

    @property
    def zone(self) -> zoneinfo.ZoneInfo:
        return UTC

    def times(self, after: dt.datetime) -> Iterator[dt.datetime]:
        number = (after - ANCHOR) // self.interval + 1
        while True:
            yield ANCHOR + number * self.interval
            number += 1

    def __str__(self) -> str:
        left, parts = self.interval.total_seconds(), []
        for unit, length in UNITS.items():
            number, left = (left // length, left % length) if length > 1 else (left, 0)
            if number:
                parts.append(f"{number:g} {unit}{'' if number == 1 else 's'}")
        return f"every {' '.join(parts)}"


@dataclass(frozen=True, slots=True)
class At:
    """A time of day in a zone, on these `days` (0 is Monday)."""

    hour: int
    minute: int
    zone: zoneinfo.ZoneInfo
    days: frozenset[int] = frozenset(range(7))

    def times(self, after: dt.datetime) -> Iterator[dt.datetime]:
        # From the day before: the instant of a time that does not exist may be on the next day.
        date, last = after.astimezone(self.zone).date() - DAY, after
        while True:
            if date.weekday() in self.days:
                moment = instant_of(dt.datetime.combine(date, dt.time(self.hour, self.minute)), self.zone)
                if moment > last:
                    yield moment
                    last = moment
            date += DAY

    def __str__(self) -> str:
        names = [DAYS[one] for one in sorted(self.days)]
        is_range = 2 < len(names) == max(self.days) - min(self.days) + 1
        said = f"{names[0]}-{names[-1]}" if is_range else ",".join(names)
        days = "" if len(names) == len(DAYS) else f" on {said}"
        return f"at {self.hour:02}:{self.minute:02}{days} {self.zone.key}"


def instant_of(local: dt.datetime, zone: zoneinfo.ZoneInfo) -> dt.datetime:
    """The first instant at which clocks in `zone` show `local`, a naive time of whole minutes; if they never do, the
    first instant after the gap."""
    while True:
        moment = local.replace(tzinfo=zone).astimezone(dt.UTC)
        if moment.astimezone(zone).replace(tzinfo=None) == local:
            return moment
        local += MINUTE


def next_times(rule: Rule, after: dt.datetime, count: int) -> list[dt.datetime]:
    """The first `count` fire times later than `after`; fewer where the rule ends, or the calendar in the year 9999."""
    found = list[dt.datetime]()
    with contextlib.suppress(OverflowError):
        found.extend(islice(rule.times(after), count))
    return found


def latest_times(rule: Rule, after: dt.datetime, until: dt.datetime, most: int) -> tuple[list[dt.datetime], bool]:
    """The last `most` fire times later than `after`, and not later than `until`; and whether there are earlier ones.

    The work depends on `most` and not on the time between the two: a clock may have been away for a year.
    """
    window = MINUTE
    while True:
        start = after if window >= until - after else until - window
        found = list(takewhile(lambda moment: moment <= until, rule.times(start)))
        if start == after or len(found) > most:
            return found[-most:], len(found) > most
        window *= 4


def interval_of(**parts: float) -> dt.timedelta:
    """The length of `weeks`, `days`, `hours`, `minutes` and `seconds` together. Raises ConfigurationError."""
    for unit, number in parts.items():
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise ConfigurationError(f"{unit} is a number, not {number!r}")
        if not 0 <= number < float("inf"):
            raise ConfigurationError(f"{unit} is a number of at least 0, not {number!r}")
    try:
        return dt.timedelta(**parts)
    except OverflowError:
        raise ConfigurationError("an interval is at most as long as a timedelta can be") from None


def zone_of(given: object) -> zoneinfo.ZoneInfo:
    """The time zone of that name. Raises ConfigurationError without one, and for an unknown one."""
    if isinstance(given, zoneinfo.ZoneInfo) and given.key:
        return given
    if given is None:
        raise ConfigurationError('a time of day needs its zone: tz="Europe/London", or tz="UTC"')
    if not isinstance(given, str):
        raise ConfigurationError(f'tz is the name of a zone, as tz="Europe/London", not {given!r}')
    try:
        return zoneinfo.ZoneInfo(given)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        known = zoneinfo.available_timezones()
        advice = near(given, known) if known else ": this system has no time zones, install the package tzdata"
        raise ConfigurationError(f"no time zone is called {given!r}{advice}") from None


def time_of_day(text: object) -> tuple[int, int]:
    """Hour and minute of a text like "02:30". Raises ConfigurationError."""
    found = re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)", text, re.ASCII) if isinstance(text, str) else None
    if found is None:
        raise ConfigurationError(f'a time of day is written "02:30", from "00:00" to "23:59", not {text!r}')
    return int(found[1]), int(found[2])


def days_of(text: object) -> frozenset[int]:
    """The days of a text like "mon-fri" or "sat,sun"; all for None. Raises ConfigurationError."""
    if text is None:
        return frozenset(range(len(DAYS)))
    days: set[int] = set()
    for part in text.lower().split(",") if isinstance(text, str) else [""]:
        first, dash, last = part.strip().partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise ConfigurationError(f'days are written "mon-fri", "sat,sun" or "mon", not {text!r}')
        start, end = DAYS.index(first), DAYS.index(last or first)
        days.update(one % len(DAYS) for one in range(start, end + 1 if end >= start else end + 1 + len(DAYS)))
    return frozenset(days)
