"""The clock on every database: what it writes, what it survives, and what people do with a schedule."""

import asyncio
import datetime as dt
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, select, text, update

from async_task import AsyncTask, Attempt, Clock, ConfigurationError, Retry, Schedule, acting
from async_task.schedule import clock as clock_module
from async_task.schedule import conditions, occurrences
from async_task.schedule.decisions import MISSED, OVERLAPS, PAUSED, REFUSED
from async_task.schema.tables import ScheduleEntry, Worker
from clockwork import row_of
from elsewhere import await_
from outbox import Client, application, calls, effect
from timetable import decided_until, fates, forget_days, let_days_pass, num_attempts, ticking
from timetable import occurrences as rows_of
from workers import counted, working

Make = Callable[[Schedule], AsyncTask]
DAY = dt.timedelta(days=1)


@pytest.fixture
def make(engine: Engine, door: str, async_engine_url: str) -> Iterator[Make]:
    """`make(schedule)`: an application on this database with this kind of engine."""
    made: list[AsyncTask] = []

    def make(schedule: Schedule) -> AsyncTask:
        made.append(application(engine, door, async_engine_url, schedule=schedule))
        return made[-1]

    yield make
    for one in made:
        one.close()


def daily(**options: Any) -> Schedule:
    """An entry with a time at each midnight: with each day that passes there is exactly one more, which is late."""
    schedule = Schedule()
    schedule.every(days=1, **{"call": Client.ping, "key": "daily", "catch_up": "all", **options})
    return schedule


# What a clock writes


def test_an_entry_begins_when_a_clock_first_sees_it(make: Make, engine: Engine) -> None:
    with ticking(make(daily())) as clock:
        clock.tick()
        assert rows_of(engine) == []
        let_days_pass(engine, 1)
        clock.tick()
    assert fates(engine) == [("enqueued", None)]


def test_an_occurrence_is_a_unique_row_inserted_in_the_same_transaction_as_its_attempt(
    make: Make, engine: Engine
) -> None:
    call = Attempt.options(queue="slow", priority=3, max_attempts=7).of(Client.fail)
    with ticking(make(daily(call=call, args={"message": "hourly"}))) as clock:
        let_days_pass(engine, 5)
        clock.tick()
    rows = rows_of(engine)
    assert [one.fire_at for one in rows] == [rows[0].fire_at + DAY * number for number in range(5)]
    assert num_attempts(engine) == len({one.attempt_id for one in rows}) == 5
    attempt = row_of(engine, rows[0].attempt_id)
    assert (attempt.target, attempt.method_name, attempt.queue) == ("test.client", "fail", "slow")
    assert (attempt.priority, attempt.max_attempts, attempt.method_args) == (3, 7, '{"message": "hourly"}')
    assert attempt.scheduled_at is None
    assert decided_until(engine, "daily") == rows[-1].fire_at


def test_its_attempts_have_the_retry_and_the_time_limit_of_its_options(make: Make, engine: Engine) -> None:
    call = Attempt.options(retry=Retry.never(), timeout=5).of(Client.ping)
    with ticking(make(daily(call=call))) as clock:
        let_days_pass(engine, 2)
        clock.tick()
    settings = {row_of(engine, one.attempt_id).call_settings for one in rows_of(engine)}
    assert settings == {'{"retry": {"delays": "never", "jitter": 0.0}, "timeout": 5.0}'}


def test_the_clock_only_enqueues_and_runs_no_code_of_the_application(make: Make, engine: Engine) -> None:
    with ticking(make(daily())) as clock:
        let_days_pass(engine, 3)
        clock.tick()
    assert (num_attempts(engine), calls) == (3, [])


def test_log_lines_of_a_clock_hold_no_arguments(make: Make, engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with ticking(make(daily(call=Client.fail, args={"message": "canary-7355608"}))) as clock:
        let_days_pass(engine, 2)
        clock.tick()
        let_days_pass(engine, 1)
        clock.tick()
    first, second = (one.getMessage() for one in caplog.records if one.getMessage().startswith("schedule daily: "))
    assert first.startswith("schedule daily: 2 times from 20")
    assert second.endswith("T00:00:00Z enqueued")
    assert "canary" not in caplog.text


def test_an_attempt_without_its_occurrence_is_not_written(
    make: Make, engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("after all was written")

    with ticking(make(daily())) as clock:
        let_days_pass(engine, 5)
        before = decided_until(engine, "daily")
        with monkeypatch.context() as patch:
            patch.setattr(occurrences, "_forget", fail)
            clock.tick()
        assert (num_attempts(engine), rows_of(engine), decided_until(engine, "daily")) == (0, [], before)
        assert "schedule daily: nothing was enqueued, it is tried again: RuntimeError: after all" in caplog.text
        clock.tick()
    assert num_attempts(engine) == len(rows_of(engine)) == 5


@pytest.mark.slow
def test_a_restart_fires_nothing_twice_because_the_last_occurrence_is_remembered(make: Make, engine: Engine) -> None:
    schedule = Schedule()
    schedule.every(days=1, call=Client.ping, catch_up="latest")
    app = make(schedule)
    with ticking(app) as clock:
        let_days_pass(engine, 1)
        clock.tick()
    for _ in range(3):
        with ticking(app) as again:
            again.tick()
    assert [one.status for one in rows_of(engine)] == ["enqueued"]


def test_what_is_enqueued_is_known_even_if_the_memory_of_the_entry_is_put_back(make: Make, engine: Engine) -> None:
    with ticking(make(daily())) as clock:
        let_days_pass(engine, 5)
        clock.tick()
        forget_days(engine, 3)
        clock.tick()
        assert decided_until(engine, "daily") == rows_of(engine)[-1].fire_at
    assert num_attempts(engine) == len(rows_of(engine)) == 5


def act_after_the_next_read(clock: Clock, act: Callable[[], object]) -> None:
    """Do `act` after the next tick has read what is decided, and before it writes."""
    read = clock._read

    def read_and_let_act(lane: Any) -> Any:
        found = read(lane)
        clock._read = read  # type: ignore[method-assign]
        other = threading.Thread(target=act)
        other.start()
        other.join()
        return found

    clock._read = read_and_let_act  # type: ignore[method-assign]


def test_of_two_clocks_that_decided_the_same_one_writes(make: Make, engine: Engine) -> None:
    app = make(daily())
    with ticking(app) as first, ticking(app) as second:
        let_days_pass(engine, 5)
        act_after_the_next_read(second.clock, first.tick)
        second.tick()
        assert (sum(first.clock.tally.values()), sum(second.clock.tally.values())) == (5, 0)
    assert num_attempts(engine) == len(rows_of(engine)) == 5


def test_what_was_decided_by_a_memory_that_has_changed_meanwhile_is_not_written(make: Make, engine: Engine) -> None:
    with ticking(make(daily())) as clock:
        let_days_pass(engine, 5)
        act_after_the_next_read(clock.clock, lambda: forget_days(engine, -4))
        until = decided_until(engine, "daily")
        clock.tick()
        assert (rows_of(engine), decided_until(engine, "daily")) == ([], until + 4 * DAY)
        clock.tick()
    assert fates(engine) == [("enqueued", None)]


def test_what_was_decided_before_a_person_paused_the_entry_is_not_written(make: Make, engine: Engine) -> None:
    app = make(daily())
    with ticking(app) as clock:
        let_days_pass(engine, 2)
        act_after_the_next_read(clock.clock, lambda: app.schedule.pause("daily"))
        clock.tick()
        assert rows_of(engine) == []
        clock.tick()
    assert fates(engine) == [("skipped", PAUSED)] * 2


@pytest.mark.only_on("postgresql", "mysql")
def test_an_entry_that_a_frozen_clock_keeps_locked_holds_up_no_other_entry(
    make: Make, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = daily()
    schedule.every(days=1, call=effect, key="next", catch_up="all")
    with ticking(make(schedule)) as clock:
        let_days_pass(engine, 1)
        with engine.connect() as frozen:
            mine = (ScheduleEntry.job_type == "async_task_attempts", ScheduleEntry.schedule_key == "daily")
            frozen.execute(select(ScheduleEntry.rule).where(*mine).with_for_update())
            assert clock.tick() <= clock_module.AGAIN
            assert (fates(engine, "daily"), fates(engine, "next")) == ([], [("enqueued", None)])
        clock.tick()
    assert fates(engine, "daily") == [("enqueued", None)]


def test_missed_times_are_rows_with_a_reason(make: Make, engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    with ticking(make(daily(catch_up="skip"))) as clock:
        let_days_pass(engine, 1)
        clock.tick()
        clock.tick()
    assert fates(engine) == [("missed", MISSED)]
    assert num_attempts(engine) == 0
    assert "schedule daily: " in caplog.text
    assert f"missed: {MISSED}" in caplog.text


def test_the_latest_missed_time_is_caught_up(make: Make, engine: Engine) -> None:
    with ticking(make(daily(catch_up="latest"))) as clock:
        let_days_pass(engine, 3)
        clock.tick()
    assert fates(engine) == [("missed", MISSED), ("missed", MISSED), ("enqueued", None)]


@pytest.mark.slow
def test_an_occurrence_is_skipped_while_the_last_attempt_is_pending(make: Make, engine: Engine) -> None:
    app = make(daily(overlap="skip"))
    with ticking(app) as clock:
        for _ in range(2):
            let_days_pass(engine, 1)
            clock.tick()
        assert num_attempts(engine) == 1
        assert fates(engine)[-1] == ("skipped", OVERLAPS)
        assert app.run_batch().succeeded == 1
        let_days_pass(engine, 1)
        clock.tick()
    assert num_attempts(engine) == 2


def test_occurrences_that_queue_are_performed_one_after_the_other(make: Make, engine: Engine) -> None:
    app = make(daily(overlap="queue"))
    with ticking(app) as clock:
        let_days_pass(engine, 3)
        clock.tick()
    attempts = [row_of(engine, one.attempt_id) for one in rows_of(engine)]
    assert {one.order_key for one in attempts} == {"schedule:daily"}
    assert [one.seq for one in attempts] == sorted(one.seq for one in attempts)


def test_jitter_delays_the_attempt_and_not_the_occurrence(make: Make, engine: Engine) -> None:
    with ticking(make(daily(jitter=3600))) as clock:
        let_days_pass(engine, 20)
        clock.tick()
    attempts = [row_of(engine, one.attempt_id) for one in rows_of(engine)]
    late = [one.due_at - one.created_at for one in attempts]
    assert all(-DAY / 86_400 <= one <= DAY / 24 for one in late)
    assert len(set(late)) == len(late)


@pytest.mark.slow
def test_rows_of_more_than_30_days_ago_are_forgotten(make: Make, engine: Engine) -> None:
    num_kept = 0
    with ticking(make(daily())) as clock:
        for days in (1, 28, 2):
            let_days_pass(engine, days)
            clock.tick()
            num_kept = len(rows_of(engine))
    assert num_kept == 30
    assert num_attempts(engine) == 31


@pytest.mark.slow
def test_the_times_of_an_entry_with_a_new_rule_count_from_now_on(make: Make, engine: Engine) -> None:
    with ticking(make(daily())):
        let_days_pass(engine, 100)
    schedule = Schedule()
    schedule.at("00:00", tz="UTC", call=Client.ping, key="daily", catch_up="all")
    with ticking(make(schedule)) as new:
        new.tick()
        assert rows_of(engine) == []
        with ticking(make(daily())):  # of the former release: it takes the entry over when it starts, and only then
            let_days_pass(engine, 1)
            new.tick()
        assert fates(engine) == [("enqueued", None)]
    with engine.connect() as connection:
        assert connection.scalars(select(ScheduleEntry.rule)).all() == ["every 1 day"]


# What a clock survives


@pytest.mark.slow
def test_no_error_of_an_entry_ends_the_clock_it_is_reported_and_the_next_entry_goes_on(
    make: Make, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    broken = True

    def when(fire_at: dt.datetime) -> bool:
        if broken:
            raise LookupError("no calendar")
        return True

    def lazy(fire_at: dt.datetime) -> object:
        return (one for one in "no")

    schedule = daily(when=when, catch_up="all")
    schedule.every(days=1, call=effect, key="lazy", when=lazy, catch_up="all")
    schedule.every(days=1, call=effect, key="next", catch_up="all")
    with ticking(make(schedule)) as clock:
        for _ in range(2):
            let_days_pass(engine, 1)
            clock.tick()
        assert rows_of(engine, "daily") == rows_of(engine, "lazy") == []
        assert {one.status for one in rows_of(engine, "next")} == {"enqueued"}
        errors = [one.getMessage() for one in caplog.records if one.levelname == "ERROR"]
        words = "WhenFailed: when= raised LookupError: no calendar"
        not_run = "WhenFailed: when= raised TypeError: when= returned a generator, which was never run"
        assert errors == [
            f"schedule {key}: nothing was enqueued, it is tried again: {said}"
            for key, said in (("daily", words), ("lazy", not_run))
        ]
        broken = False
        clock.tick()
    assert {one.status for one in rows_of(engine, "daily")} == {"enqueued"}


def test_a_condition_that_says_no_skips_with_a_reason_and_is_given_the_time_in_the_zone_of_the_entry(
    make: Make, engine: Engine
) -> None:
    asked: list[dt.datetime] = []
    schedule = Schedule()
    schedule.at("05:15", tz="Asia/Kolkata", call=Client.ping, catch_up="latest", when=asked.append)
    with ticking(make(schedule)) as clock:
        let_days_pass(engine, 1)
        clock.tick()
    assert fates(engine) == [("skipped", REFUSED)]
    assert [f"{one:%H:%M %Z}" for one in asked] == ["05:15 IST"]


@pytest.mark.slow
def test_a_condition_that_hangs_holds_up_no_other_entry(
    make: Make, engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(conditions, "LONGEST", 0.05)
    opened = threading.Event()
    asked: list[object] = []

    def when(fire_at: dt.datetime) -> bool:
        asked.append(fire_at)
        return opened.wait(60)

    schedule = daily(when=when)
    schedule.every(days=1, call=effect, key="next", catch_up="all")
    with ticking(make(schedule)) as clock:
        for _ in range(3):
            let_days_pass(engine, 1)
            clock.tick()
        assert len(asked) == 1
        assert "when= did not answer within" in caplog.text
        assert {one.status for one in rows_of(engine, "next")} == {"enqueued"}
        opened.set()
        for thread in threading.enumerate():
            if thread.name == "async-task-when":
                thread.join()
        clock.tick()
        assert {one.status for one in rows_of(engine, "daily")} == {"enqueued"}


@pytest.mark.slow
def test_a_database_that_is_away_is_waited_for_and_told_at_its_begin_and_its_end(
    make: Make, engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("AGAIN", "TICK"):
        monkeypatch.setattr(clock_module, name, 0.02)
    app = make(daily())
    clock = app.clock()
    thread = threading.Thread(target=clock.run)
    thread.start()
    await_(app.workers, "the clock ticks")
    try:
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE async_task_schedules RENAME TO elsewhere"))
        try:
            await_(lambda: "cannot be used since" in caplog.text, "it is told")
        finally:
            with engine.begin() as connection:
                connection.execute(text("ALTER TABLE elsewhere RENAME TO async_task_schedules"))
        await_(lambda: "is back after" in caplog.text, "its end is told")
        let_days_pass(engine, 1)
        await_(lambda: num_attempts(engine), "it enqueues again")
    finally:
        clock.stop()
        thread.join(30)
    told = [
        one.getMessage() for one in caplog.records if one.levelname == "WARNING" and " missed" not in one.getMessage()
    ]
    assert [one.startswith(f"clock {clock.name}: the database ") for one in told] == [True, True]
    assert not thread.is_alive()
    assert app.workers() == []


def test_a_clock_refuses_to_block_an_event_loop(make: Make) -> None:
    clock = make(daily()).clock()

    async def block() -> None:
        clock.run()

    with pytest.raises(ConfigurationError, match=r"await asyncio.to_thread\(clock.run\)"):
        asyncio.run(block())


# Who notices what


def test_each_tick_is_a_heartbeat_and_a_hung_clock_is_dead_although_its_process_runs(
    make: Make, engine: Engine
) -> None:
    app = make(daily())
    with ticking(app) as clock:
        (found,) = app.workers()
        assert (found.name, found.kind, found.is_dead, found.about["entries"]) == (clock.clock.name, "clock", False, 1)
        hung = update(Worker).values(beat_at=found.beat_at - dt.timedelta(seconds=30))
        with engine.begin() as connection:
            connection.execute(hung)
        assert app.workers()[0].is_dead
        clock.tick()
        assert not app.workers()[0].is_dead


def test_the_next_tick_is_at_the_next_time_and_a_tick_comes_every_ten_seconds(make: Make) -> None:
    with ticking(make(daily())) as clock:
        assert 9 < clock.tick() <= 10
    schedule = Schedule()
    schedule.every(seconds=1, call=Client.ping)
    with ticking(make(schedule)) as clock:
        assert 0 <= clock.tick() <= 1.1


@pytest.mark.slow
def test_a_worker_can_carry_the_clock(make: Make, engine: Engine) -> None:
    app = make(daily())
    with ticking(app):
        let_days_pass(engine, 2)
    with working(app, clock=True):
        await_(lambda: counted(engine).get("succeeded"), "what the clock enqueues is performed")
        kinds = {one.kind for one in app.workers()}
    assert kinds >= {"worker", "clock"}
    assert app.workers() == []


@pytest.mark.slow
def test_failed_work_is_retried_by_the_workers(make: Make, engine: Engine) -> None:
    app = make(daily(call=Client.fail))
    with ticking(app) as clock:
        let_days_pass(engine, 1)
        clock.tick()
    assert app.run_batch().retried == num_attempts(engine)
    assert counted(engine) == {"pending": num_attempts(engine)}


# What people do


@pytest.mark.slow
def test_a_paused_entry_skips_its_times_and_a_resumed_one_goes_on_from_now(make: Make, engine: Engine) -> None:
    app = make(daily())
    with ticking(app) as clock, acting("anna@host"):
        assert app.schedule.pause("daily", reason="stocktaking", dry_run=True)
        assert app.schedule.pause("daily", reason="stocktaking")
        assert not app.schedule.pause("daily", reason="again")
        (found,) = app.schedule.list()
        assert (found.paused_by, found.pause_reason) == ("anna@host", "stocktaking")
        let_days_pass(engine, 3)
        clock.tick()
        assert set(fates(engine)) == {("skipped", PAUSED)}
        let_days_pass(engine, 100)
        assert app.schedule.resume("daily", dry_run=True)
        assert app.schedule.resume("daily")
        assert not app.schedule.resume("daily")
        until = decided_until(engine, "daily")
        clock.tick()
        assert decided_until(engine, "daily") == until
        assert num_attempts(engine) == 0


def test_an_entry_that_no_clock_has_seen_can_be_paused(make: Make, engine: Engine) -> None:
    app = make(daily())
    assert not app.schedule.list()[0].is_seen
    assert app.schedule.pause("daily")
    assert app.schedule.list()[0].paused_at is not None


def test_a_call_enqueued_by_hand_is_an_occurrence_and_overlaps(make: Make, engine: Engine) -> None:
    app = make(daily(overlap="skip", jitter=3600))
    with ticking(app) as clock, acting("anna@host"):
        made = app.schedule.run("daily")
        assert row_of(engine, made).scheduled_at is None
        (found,) = app.schedule.occurrences("daily")
        assert (found.attempt_id, found.status, found.reason) == (made, "enqueued", "by hand, anna@host")
        let_days_pass(engine, 1)
        clock.tick()
        assert num_attempts(engine) == 1
        assert ("skipped", OVERLAPS) in fates(engine)


def test_the_times_to_come_are_those_of_all_entries_together(make: Make) -> None:
    schedule = Schedule()
    schedule.every(hours=12, call=Client.ping)
    schedule.at("02:30", tz="America/New_York", call=effect)
    app = make(schedule)
    after = dt.datetime(2026, 10, 31, tzinfo=dt.UTC)
    found = app.schedule.next(5, after=after)
    assert [(one.key, f"{one.fire_at:%d %H:%M}", f"{one.local:%H:%M %Z}") for one in found] == [
        ("test.effect", "31 06:30", "02:30 EDT"),
        ("test.client.ping", "31 12:00", "12:00 UTC"),
        ("test.client.ping", "01 00:00", "00:00 UTC"),
        ("test.effect", "01 07:30", "02:30 EST"),
        ("test.client.ping", "01 12:00", "12:00 UTC"),
    ]
    assert [one.key for one in app.schedule.next(2, key="test.effect")] == ["test.effect"] * 2


def test_a_list_of_entries_says_what_the_database_knows(make: Make, engine: Engine) -> None:
    app = make(daily(overlap="skip", catch_up="latest", jitter=5))
    (new,) = app.schedule.list()
    assert (new.is_seen, new.last, new.rule, new.call, new.tz) == (
        False,
        None,
        "every 1 day",
        "test.client.ping",
        "UTC",
    )
    with ticking(app) as clock:
        let_days_pass(engine, 1)
        clock.tick()
    (seen,) = app.schedule.list()
    assert (seen.is_seen, seen.catch_up, seen.overlap, seen.jitter) == (True, "latest", "skip", DAY / 17_280)
    assert seen.last == app.schedule.occurrences()[0]
    assert seen.last is not None
    assert seen.last.fire_at == rows_of(engine)[-1].fire_at
    assert seen.next_at is not None
    assert seen.next_at > seen.last.fire_at
