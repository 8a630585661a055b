"""Cron expressions, as Debian's cron reads them."""

import datetime as dt
import itertools
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_task import ConfigurationError
from async_task.schedule.cron import Cron
from async_task.schedule.rules import next_times


def utc(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


UTC, NEW_YORK, LONDON = ZoneInfo("UTC"), ZoneInfo("America/New_York"), ZoneInfo("Europe/London")


def times(expression: str, after: str, count: int, zone: ZoneInfo = UTC) -> list[str]:
    since = dt.datetime.fromisoformat(after).replace(tzinfo=dt.UTC)
    return [f"{one.astimezone(zone):%a %m-%d %H:%M %Z}" for one in next_times(Cron(expression, zone), since, count)]


@pytest.mark.parametrize("sunday", ["0", "7", "sun", "SUN"])
def test_sunday_is_0_and_7(sunday: str) -> None:
    assert times(f"0 9 * * {sunday}", "2026-11-27", 2) == ["Sun 11-29 09:00 UTC", "Sun 12-06 09:00 UTC"]


def test_day_of_month_or_day_of_week_fires_when_one_of_them_matches() -> None:
    found = times("0 0 13 * fri", "2026-11-01", 4)
    assert found == ["Fri 11-06 00:00 UTC", "Fri 11-13 00:00 UTC", "Fri 11-20 00:00 UTC", "Fri 11-27 00:00 UTC"]
    assert "Sun 12-13 00:00 UTC" in times("0 0 13 * fri", "2026-12-01", 4)


def test_a_field_that_begins_with_a_star_must_match_too() -> None:
    assert times("0 0 */2 * mon", "2026-11-01", 2) == ["Mon 11-09 00:00 UTC", "Mon 11-23 00:00 UTC"]


def test_february_29_comes_in_leap_years_only() -> None:
    cron = Cron("0 0 29 2 *", UTC)
    assert [one.year for one in next_times(cron, dt.datetime(2026, 1, 1, tzinfo=dt.UTC), 2)] == [2028, 2032]


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("0 0 31 2 *", "there is no such day of month"),
        ("0 0 30 feb *", "there is no such day of month"),
        ("0 0 31 4,6,9,11 *", "there is no such day of month"),
        ("60 * * * *", "there is no such minute"),
        ("* 24 * * *", "there is no such hour"),
        ("* * 0 * *", "there is no such day of month"),
        ("* * * 13 *", "there is no such month"),
        ("* * * * 8", "there is no such day of week"),
        ("5-1 * * * *", "there is no such minute"),
        ("5/15 * * * *", "bad minute: '5/15'"),
        ("5-5/15 * * * *", "bad minute: '5-5/15'"),
        ("1,,2 * * * *", "bad minute"),
        ("1- * * * *", "bad minute"),
        ("*/0 * * * *", "there is no such minute"),
        ("* * * *", "five fields"),
        ("0 * * * * *", "five fields"),
        ("0 0 L * *", "bad day of the month: 'L'"),
        ("0 0 * * mon#2", "bad day of the week"),
        ("@reboot", "five fields"),
        ("", "five fields"),
        (None, "is a text"),
    ],
)
def test_an_impossible_date_is_an_error_at_load(expression: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Cron(expression, UTC)


def test_nicknames_are_those_of_cron() -> None:
    assert times("@daily", "2026-11-27 10:00", 1) == ["Sat 11-28 00:00 UTC"]
    assert times("@Hourly", "2026-11-27 10:00", 1) == ["Fri 11-27 11:00 UTC"]
    assert times("@weekly", "2026-11-27 10:00", 1) == ["Sun 11-29 00:00 UTC"]


def test_a_time_of_day_that_does_not_exist_fires_at_the_next_valid_instant_and_one_that_comes_twice_once() -> None:
    assert times("30 2 * * *", "2026-03-07 12:00", 2, NEW_YORK) == ["Sun 03-08 03:00 EDT", "Mon 03-09 02:30 EDT"]
    assert times("0,30 2,3 8 * *", "2026-03-08", 3, NEW_YORK) == [
        "Sun 03-08 03:00 EDT", "Sun 03-08 03:30 EDT", "Wed 04-08 02:00 EDT",
    ]  # fmt: skip
    assert times("30 1 * * *", "2026-10-31 12:00", 2, NEW_YORK) == ["Sun 11-01 01:30 EDT", "Mon 11-02 01:30 EST"]
    assert times("30 1 * * *", "2026-11-01 06:00", 1, NEW_YORK) == ["Mon 11-02 01:30 EST"]


def test_an_expression_with_a_star_for_the_hour_follows_real_time() -> None:
    found = times("5 * * * *", "2026-10-24 23:30", 4, LONDON)
    assert found == ["Sun 10-25 01:05 BST", "Sun 10-25 01:05 GMT", "Sun 10-25 02:05 GMT", "Sun 10-25 03:05 GMT"]
    assert times("5 * * * *", "2026-03-29 00:00", 2, LONDON) == ["Sun 03-29 00:05 GMT", "Sun 03-29 02:05 BST"]


RANGES = {"minute": (0, 59), "hour": (0, 23), "day": (1, 28), "month": (1, 12), "weekday": (0, 7)}


@st.composite
def fields(draw: Callable[..., int], name: str, star: float = 0.5) -> str:
    low, high = RANGES[name]
    if draw(st.booleans()):
        return draw(st.sampled_from(["*", "*/2", "*/7"]))  # type: ignore[return-value]
    first = draw(st.integers(low, high))
    last = draw(st.integers(first, high))
    step = draw(st.integers(1, 5))
    return draw(
        st.sampled_from(
            [f"{first}", f"{first}-{last}", f"{first}-{last}/{step}" if first < last else f"{first}", f"{first},{last}"]
        )
    )  # type: ignore[return-value]


@given(
    st.tuples(*(fields(name) for name in RANGES)),
    st.sampled_from(["UTC", "America/New_York", "Europe/London", "Australia/Lord_Howe"]).map(ZoneInfo),
    st.datetimes(dt.datetime(2026, 1, 1), dt.datetime(2027, 1, 1)).map(lambda one: one.replace(tzinfo=dt.UTC)),
)
def test_any_expression_fires_when_its_fields_match_the_local_time(
    expression: tuple[str, ...], zone: ZoneInfo, after: dt.datetime
) -> None:
    found = next_times(Cron(" ".join(expression), zone), after, 20)
    assert found == sorted(set(found))
    assert found[0] > after
    previous = after
    for one in found:
        shown = one.astimezone(zone)
        is_moved = shown.utcoffset() != (one - dt.timedelta(hours=3)).astimezone(zone).utcoffset()
        assert matches(expression, shown) or is_moved
        # Nothing in between, where no change of daylight saving is near. Four probes: each minute would take too long.
        for share in (0.1, 0.3, 0.6, 0.9):
            probe = (previous + (one - previous) * share).replace(second=0, microsecond=0)
            local = probe.astimezone(zone)
            is_near = local.utcoffset() != (probe - dt.timedelta(hours=26)).astimezone(zone).utcoffset()
            assert not previous < probe < one or is_near or not matches(expression, local)
        previous = one


CHANGES = ["2026-03-08T07:00", "2026-11-01T06:00", "2026-03-29T01:00", "2026-10-25T01:00", "2026-04-04T15:00"]


ZONES = st.sampled_from(["America/New_York", "Europe/London", "Australia/Lord_Howe", "America/Havana"]).map(ZoneInfo)
MINUTES = st.tuples(fields("minute"), fields("hour")).map(lambda both: (*both, "*", "*", "*"))


def between(expression: tuple[str, ...], zone: ZoneInfo, after: dt.datetime, until: dt.datetime) -> list[dt.datetime]:
    return list(itertools.takewhile(lambda one: one <= until, Cron(" ".join(expression), zone).times(after)))


@given(MINUTES.filter(lambda one: "*" in one[0] + one[1]), ZONES, st.sampled_from(CHANGES).map(utc))
def test_an_expression_with_a_star_fires_at_each_minute_that_matches_also_round_a_change_of_daylight_saving(
    expression: tuple[str, ...], zone: ZoneInfo, change: dt.datetime
) -> None:
    minutes = [change + dt.timedelta(minutes=one) for one in range(-240, 240)]
    expected = [one for one in minutes if matches(expression, one.astimezone(zone))]
    assert between(expression, zone, minutes[0] - dt.timedelta(seconds=1), minutes[-1]) == expected


@given(MINUTES, ZONES, st.sampled_from(CHANGES).map(utc), st.integers(-20_000, 20_000))
def test_the_times_are_the_same_wherever_a_clock_starts(
    expression: tuple[str, ...], zone: ZoneInfo, change: dt.datetime, shift: int
) -> None:
    start, end = change + dt.timedelta(seconds=shift), change + dt.timedelta(hours=12)
    earlier = between(expression, zone, change - dt.timedelta(hours=30), end)
    assert between(expression, zone, start, end) == [one for one in earlier if one > start]


def matches(expression: tuple[str, ...], local: dt.datetime) -> bool:
    """Cron's rule, written down once more."""
    values = (local.minute, local.hour, local.day, local.month, local.isoweekday() % 7)
    minute, hour, day, month, weekday = (
        has(field, value, *RANGES[name]) for field, value, name in zip(expression, values, RANGES, strict=True)
    )
    weekday = weekday or (values[4] == 0 and has(expression[4], 7, 0, 7))
    is_and = expression[2].startswith("*") or expression[4].startswith("*")
    return minute and hour and month and ((day and weekday) if is_and else (day or weekday))


def has(field: str, value: int, low: int, high: int) -> bool:
    high = 31 if (low, high) == (1, 28) else high
    for part in field.split(","):
        found = re.fullmatch(r"(?:(\*)|(\d+)(?:-(\d+))?)(?:/(\d+))?", part)
        assert found
        first = low if found[1] else int(found[2])
        last = high if found[1] else int(found[3] or first)
        if value in range(first, last + 1, int(found[4] or 1)):
            return True
    return False


def test_cron_needs_an_extra_and_the_other_rules_do_not(tmp_path: Path) -> None:
    program = """
        import sys

        class NoCronsim:
            def find_spec(self, name, path=None, target=None):
                if name == "cronsim":
                    raise ModuleNotFoundError("No module named 'cronsim'", name="cronsim")

        sys.meta_path.insert(0, NoCronsim())
        from async_task import ConfigurationError, Schedule, target

        @target("lonely")
        def lonely() -> None: ...

        schedule = Schedule()
        schedule.every(minutes=5, call=lonely)
        schedule.at("02:30", tz="UTC", call=lonely, key="at night")
        try:
            schedule.cron("5 * * * *", tz="UTC", call=lonely, key="hourly")
        except ConfigurationError as error:
            print(error)
        """
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    said = "schedule entry 'hourly': a cron entry needs cronsim: install async-task[scheduler]"
    assert (ended.stdout.strip(), ended.stderr) == (said, "")
