"""What fires now: decided by a pure function, at the exact boundaries."""

import datetime as dt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_task import Schedule
from async_task.schedule.decisions import MISSED, ON_TIME, OVERLAPS, PAUSED, REFUSED, Decided, EntryState, decide
from async_task.schedule.entry import MOST, Entry
from outbox import Client

NOON = dt.datetime(2026, 11, 27, 12, 0, tzinfo=dt.UTC)
TICK = dt.timedelta(microseconds=1)
HOUR = dt.timedelta(hours=1)


def hourly(**options: Any) -> Entry:
    schedule = Schedule()
    schedule.every(hours=1, call=Client.ping, **options)
    return next(iter(schedule))


def fates(decided: Any) -> list[tuple[int, str]]:
    return [(one.fire_at.hour, one.status) for one in decided]


def test_nothing_fires_before_its_time_and_it_fires_at_its_time() -> None:
    state = EntryState(NOON - HOUR)
    assert decide(hourly(), state, NOON - TICK) == []
    assert decide(hourly(), state, NOON) == [Decided(NOON, "enqueued")]


def test_a_restart_fires_nothing_twice() -> None:
    assert decide(hourly(), EntryState(NOON), NOON) == []
    assert decide(hourly(), EntryState(NOON), NOON + HOUR - TICK) == []


def test_a_clock_of_the_database_that_goes_back_fires_nothing_again() -> None:
    assert decide(hourly(), EntryState(NOON), NOON - 5 * HOUR) == []


def test_a_time_is_on_time_for_one_minute_as_while_a_clock_is_restarted() -> None:
    state = EntryState(NOON - HOUR)
    assert fates(decide(hourly(), state, NOON + ON_TIME)) == [(12, "enqueued")]
    assert decide(hourly(), state, NOON + ON_TIME + TICK) == [Decided(NOON, "missed", MISSED)]


@pytest.mark.parametrize(
    ("catch_up", "enqueued"),
    [("skip", []), ("latest", [12]), ("all", [9, 10, 11, 12]), ("all(2)", [11, 12]), ("all(9)", [9, 10, 11, 12])],
)
def test_catch_up_says_how_many_missed_times_are_enqueued_late(catch_up: str, enqueued: list[int]) -> None:
    decided = decide(hourly(catch_up=catch_up), EntryState(NOON - 4 * HOUR), NOON + HOUR / 2)
    assert [one.fire_at.hour for one in decided] == [9, 10, 11, 12]
    assert [one.fire_at.hour for one in decided if one.status == "enqueued"] == enqueued
    assert {one.reason for one in decided if one.status == "missed"} <= {MISSED}


def test_of_several_times_the_last_one_is_on_time_and_the_earlier_ones_are_missed() -> None:
    decided = decide(hourly(), EntryState(NOON - 3 * HOUR), NOON)
    assert fates(decided) == [(10, "missed"), (11, "missed"), (12, "enqueued")]


def test_what_comes_while_an_entry_is_paused_is_skipped() -> None:
    decided = decide(hourly(catch_up="all"), EntryState(NOON - 2 * HOUR, is_paused=True), NOON)
    assert [(one.status, one.reason) for one in decided] == [("skipped", PAUSED)] * 2


@pytest.mark.parametrize(("overlap", "fate"), [("skip", "skipped"), ("queue", "enqueued"), ("allow", "enqueued")])
def test_overlap_says_what_happens_while_the_last_attempt_is_pending(overlap: str, fate: str) -> None:
    entry = hourly(overlap=overlap)
    assert fates(decide(entry, EntryState(NOON - HOUR, is_running=True), NOON)) == [(12, fate)]
    assert fates(decide(entry, EntryState(NOON - HOUR), NOON)) == [(12, "enqueued")]


def test_of_missed_times_that_are_caught_up_together_those_behind_the_first_overlap() -> None:
    decided = decide(hourly(overlap="skip", catch_up="all"), EntryState(NOON - 3 * HOUR), NOON)
    assert fates(decided) == [(10, "enqueued"), (11, "skipped"), (12, "skipped")]
    assert decided[-1].reason == OVERLAPS


def test_when_is_asked_about_what_would_fire_and_only_about_that() -> None:
    asked: list[int] = []

    def when(fire_at: dt.datetime) -> bool:
        asked.append(fire_at.hour)
        return fire_at.hour != 11

    decided = decide(hourly(catch_up="all(2)", overlap="skip"), EntryState(NOON - 3 * HOUR), NOON, when)
    assert [(one.status, one.reason) for one in decided] == [
        ("missed", MISSED),
        ("skipped", REFUSED),
        ("enqueued", None),
    ]
    assert asked == [11, 12]
    asked.clear()
    decide(hourly(overlap="skip"), EntryState(NOON - HOUR, is_running=True), NOON, when)
    decide(hourly(), EntryState(NOON - HOUR, is_paused=True), NOON, when)
    assert asked == []


def test_a_clock_that_was_away_for_years_decides_a_bounded_number_of_times() -> None:
    decided = decide(hourly(catch_up="latest"), EntryState(NOON - 50_000 * HOUR), NOON)
    assert len(decided) == MOST
    assert (decided[0].status, decided[0].reason) == ("missed", f"{MISSED}; earlier times have no row")
    assert decided[-1] == Decided(NOON, "enqueued")


@given(
    st.lists(st.integers(1, 4000), min_size=1, max_size=30),
    st.sampled_from(["skip", "latest", "all(1000)"]),
    st.sampled_from(["skip", "allow"]),
)
def test_each_time_is_decided_exactly_once_however_often_a_clock_looks(
    pauses: list[int], catch_up: str, overlap: str
) -> None:
    schedule = Schedule()
    schedule.every(seconds=7, call=Client.ping, catch_up=catch_up, overlap=overlap)
    entry = next(iter(schedule))
    state, now, seen = EntryState(NOON), NOON, list[dt.datetime]()
    for pause in pauses:
        now += dt.timedelta(seconds=pause)
        decided = decide(entry, state, now)
        seen += [one.fire_at for one in decided]
        assert all(one.fire_at <= now for one in decided)
        state = EntryState(decided[-1].fire_at) if decided else state
    expected = (
        int((now - NOON).total_seconds() + NOON.timestamp() - 345_600) // 7 - int(NOON.timestamp() - 345_600) // 7
    )
    assert len(seen) == len(set(seen)) == expected
