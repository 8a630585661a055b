"""When an entry fires: to the boundary, and through changes of daylight saving."""

import datetime as dt
import itertools
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_task import ConfigurationError
from async_task.schedule.rules import (
    At,
    Every,
    days_of,
    instant_of,
    interval_of,
    latest_times,
    next_times,
    time_of_day,
    zone_of,
)

NEW_YORK, LONDON = ZoneInfo("America/New_York"), ZoneInfo("Europe/London")
TICK = dt.timedelta(microseconds=1)
INSTANTS = st.datetimes(dt.datetime(2020, 1, 1), dt.datetime(2030, 1, 1)).map(lambda one: one.replace(tzinfo=dt.UTC))
ZONES = st.sampled_from(
    ["UTC", "America/New_York", "Europe/London", "Australia/Lord_Howe", "America/Havana", "Asia/Beirut", "Asia/Kolkata"]
).map(ZoneInfo)


def utc(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


def local(times: list[dt.datetime], zone: ZoneInfo) -> list[str]:
    return [f"{one.astimezone(zone):%m-%d %H:%M %Z}" for one in times]


# Intervals


def test_an_interval_has_the_same_times_wherever_a_clock_starts() -> None:
    rule = Every(dt.timedelta(minutes=5))
    assert next_times(rule, utc("2026-03-08 10:02:59"), 2) == [utc("2026-03-08 10:05"), utc("2026-03-08 10:10")]
    assert next_times(rule, utc("2026-03-08 10:05"), 1) == [utc("2026-03-08 10:10")]
    assert next_times(rule, utc("2026-03-08 10:05") - TICK, 1) == [utc("2026-03-08 10:05")]
    assert next_times(rule, utc("1960-01-01 00:00"), 1) == [utc("1960-01-01 00:05")]


def test_intervals_count_in_utc_through_a_change_of_daylight_saving() -> None:
    times = next_times(Every(dt.timedelta(hours=1)), utc("2026-10-25 00:00"), 3)
    assert local(times, LONDON) == ["10-25 01:00 GMT", "10-25 02:00 GMT", "10-25 03:00 GMT"]
    assert [b - a for a, b in itertools.pairwise(times)] == [dt.timedelta(hours=1)] * 2


def test_a_week_begins_with_monday() -> None:
    assert next_times(Every(dt.timedelta(weeks=1)), utc("2026-11-29 12:00"), 1) == [utc("2026-11-30 00:00")]


@given(st.integers(1, 10**6), INSTANTS)
def test_any_interval_has_a_time_in_each_of_its_lengths(seconds: int, after: dt.datetime) -> None:
    length = dt.timedelta(seconds=seconds)
    first, second = next_times(Every(length), after, 2)
    assert after < first <= after + length
    assert second - first == length


@pytest.mark.parametrize("parts", [{}, {"seconds": 0.5}, {"minutes": -1}, {"minutes": float("nan")}, {"hours": True}])
def test_an_interval_of_less_than_a_second_is_refused(parts: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        Every(interval_of(**parts))


def test_a_rule_says_itself_in_words() -> None:
    assert str(Every(dt.timedelta(minutes=5))) == "every 5 minutes"
    assert str(Every(dt.timedelta(days=1, seconds=0.5))) == "every 1 day 0.5 seconds"
    assert str(At(2, 30, NEW_YORK)) == "at 02:30 America/New_York"
    assert str(At(2, 30, NEW_YORK, days_of("mon-fri"))) == "at 02:30 on mon-fri America/New_York"
    assert str(At(2, 30, NEW_YORK, days_of("mon,fri"))) == "at 02:30 on mon,fri America/New_York"


# Times of day


def test_a_time_that_does_not_exist_fires_at_the_next_valid_instant() -> None:
    times = next_times(At(2, 30, NEW_YORK), utc("2026-03-07 00:00"), 3)
    assert local(times, NEW_YORK) == ["03-07 02:30 EST", "03-08 03:00 EDT", "03-09 02:30 EDT"]
    gap = utc("2026-03-08 07:00")
    assert next_times(At(2, 30, NEW_YORK), gap - TICK, 1) == [gap]
    assert next_times(At(2, 30, NEW_YORK), gap, 1) == [utc("2026-03-09 06:30")]


def test_a_time_that_occurs_twice_fires_once() -> None:
    times = next_times(At(1, 30, NEW_YORK), utc("2026-10-31 12:00"), 2)
    assert local(times, NEW_YORK) == ["11-01 01:30 EDT", "11-02 01:30 EST"]
    assert next_times(At(1, 30, NEW_YORK), utc("2026-11-01 06:00"), 1) == [utc("2026-11-02 06:30")]


def test_a_day_that_does_not_exist_fires_at_the_begin_of_the_next() -> None:
    apia = ZoneInfo("Pacific/Apia")
    times = next_times(At(12, 0, apia), utc("2011-12-29 12:00"), 3)
    assert local(times, apia)[1:] == ["12-31 00:00 +14", "12-31 12:00 +14"]


def test_days_are_days_of_the_zone() -> None:
    tokyo = ZoneInfo("Asia/Tokyo")
    assert next_times(At(0, 30, tokyo, days_of("mon")), utc("2026-11-28 00:00"), 1) == [utc("2026-11-29 15:30")]


@given(ZONES, st.integers(0, 23), st.integers(0, 59), INSTANTS)
def test_a_time_of_day_fires_once_on_each_day_of_any_zone(
    zone: ZoneInfo, hour: int, minute: int, after: dt.datetime
) -> None:
    times = next_times(At(hour, minute, zone), after, 400)
    assert times[0] > after
    assert times == sorted(set(times))
    days = [one.astimezone(zone).date() for one in times]
    assert days == [days[0] + dt.timedelta(days=number) for number in range(400)]
    for one in times:
        shown = one.astimezone(zone).replace(tzinfo=None)
        wanted = shown.replace(hour=hour, minute=minute)
        before = (one - dt.timedelta(minutes=1)).astimezone(zone).replace(tzinfo=None)
        assert shown == wanted or before < wanted < shown  # in a gap: the first instant after it


@given(ZONES, INSTANTS)
def test_the_instant_of_a_local_time_shows_that_time_or_follows_a_gap(zone: ZoneInfo, at: dt.datetime) -> None:
    wanted = at.replace(tzinfo=None, second=0, microsecond=0)
    found = instant_of(wanted, zone)
    assert found.astimezone(zone).replace(tzinfo=None) >= wanted
    assert (found - dt.timedelta(minutes=1)).astimezone(zone).replace(tzinfo=None) < wanted


@pytest.mark.parametrize(
    ("text", "days"),
    [("mon-fri", {0, 1, 2, 3, 4}), ("sat,sun", {5, 6}), ("Mon", {0}), ("fri-mon", {4, 5, 6, 0}), (None, set(range(7)))],
)
def test_days_are_read(text: str | None, days: set[int]) -> None:
    assert days_of(text) == days


@pytest.mark.parametrize("text", ["", "monday", "mon-", "-fri", "mon,,tue", 3])
def test_bad_days_are_refused(text: object) -> None:
    with pytest.raises(ConfigurationError, match="days are written"):
        days_of(text)


@pytest.mark.parametrize("text", ["24:00", "2:30", "02:60", "0230", "02:30:00", "", None, "٠٢:30"])
def test_a_bad_time_of_day_is_refused(text: object) -> None:
    with pytest.raises(ConfigurationError, match="a time of day is written"):
        time_of_day(text)


@pytest.mark.parametrize(
    ("zone", "words"),
    [
        (None, "needs its zone"),
        ("Europe/Londn", r"did you mean 'Europe/London'\?"),
        ("../etc/passwd", "no time zone"),
        ("", "no time zone"),
        (dt.UTC, "name of a zone"),
    ],
)
def test_a_zone_that_is_missing_or_unknown_is_refused(zone: object, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        zone_of(zone)


# The last times


@given(st.integers(1, 5000), INSTANTS, st.integers(0, 10**6), st.integers(1, 50))
def test_the_last_times_are_those_that_were_not_decided(seconds: int, after: dt.datetime, away: int, most: int) -> None:
    rule, until = Every(dt.timedelta(seconds=seconds)), after + dt.timedelta(seconds=away)
    number = (
        int((until - rule.times(after).__next__()) / rule.interval) + 1 if next_times(rule, after, 1)[0] <= until else 0
    )
    found, is_cut = latest_times(rule, after, until, most)
    assert len(found) == min(number, most)
    assert is_cut == (number > most)
    assert all(after < one <= until for one in found)
    assert not found or next_times(rule, found[-1], 1)[0] > until


def test_the_last_times_of_a_clock_that_was_away_for_years_are_found_without_counting_all() -> None:
    seen = 0

    class Counting(Every):
        def times(self, after: dt.datetime):  # type: ignore[no-untyped-def]
            nonlocal seen
            for one in super().times(after):
                seen += 1
                yield one

    found, is_cut = latest_times(
        Counting(dt.timedelta(seconds=1)), utc("2000-01-01 00:00"), utc("2026-01-01 00:00"), 1000
    )
    assert (len(found), is_cut) == (1000, True)
    assert seen < 10_000
