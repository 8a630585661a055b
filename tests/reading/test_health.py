"""Health: the age of the oldest due attempt, the workers and clocks that live, and whether the database answers."""

import datetime as dt
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, insert, text, update
from sqlalchemy.orm import DeclarativeBase

from async_task import AsyncTask, Attempt, BaseAttempt, ConfigurationError, Health, HealthState, Schedule
from async_task.queue import workers
from async_task.reading import oldest_due
from async_task.schema.tables import Worker
from claims import TABLE, claimed
from conftest import by_one_door
from outbox import Client, act

Write = Callable[..., Attempt]
HOUR = dt.timedelta(hours=1)
LEASE = dt.timedelta(seconds=1)
OK, WARNING, CRITICAL, UNKNOWN = HealthState.OK, HealthState.WARNING, HealthState.CRITICAL, HealthState.UNKNOWN


def ago(length: dt.timedelta) -> dt.datetime:
    return dt.datetime.now(dt.UTC) - length


def process(engine: Engine, name: str, kind: str = "worker", *, silent: float = 0, **values: Any) -> None:
    """A process of another machine, whose last heartbeat was `silent` seconds ago."""
    row = {"name": name, "host": "elsewhere", "pid": 7, "process_started": "another boot:1:2", "job_type": TABLE.name}
    with engine.begin() as connection:
        beat_at = ago(dt.timedelta(seconds=silent))
        connection.execute(insert(Worker).values(row | {"kind": kind, "beat_at": beat_at} | values))


def states(found: Health) -> dict[str, HealthState]:
    return {one.name: one.state for one in found.checks}


def words(found: Health, name: str) -> str:
    check = found.check(name)
    assert check is not None
    return check.words


# The oldest due attempt


@by_one_door
def test_the_oldest_due_attempt_is_found_in_any_queue_and_priority(app: AsyncTask, write: Write) -> None:
    assert app.attempts.oldest_due().age == dt.timedelta(0)
    for number, (queue, priority) in enumerate([("b", 9), ("a", 0), ("c", 5)]):
        write(Client, "ping", queue=queue, priority=priority, scheduled_at=ago((3 - number) * HOUR))
    write(Client, "ping", queue="b", priority=0, scheduled_at=ago(HOUR / 2))
    found = app.attempts.oldest_due()
    assert (found.queue, round(found.age / HOUR), found.is_complete) == ("b", 3, True)
    assert app.attempts.get(found.attempt_id or "").due_at == found.read_at - found.age
    assert round(app.attempts.oldest_due("a").age / HOUR) == 2
    assert app.attempts.oldest_due("nothing").queue is None


@by_one_door
def test_what_is_not_due_claimed_ended_or_paused_is_not_late(app: AsyncTask, engine: Engine, write: Write) -> None:
    write(Client, "ping", scheduled_at=dt.datetime(2099, 1, 1, tzinfo=dt.UTC))
    claimed(engine, write(Client, "ping", scheduled_at=ago(HOUR)).id, "me")
    ended = write(Client, "ping", scheduled_at=ago(HOUR))
    app.write(lambda session: session.get(Attempt, ended.id).cancel(reason="test"))
    write(Client, "ping", queue="mail", scheduled_at=ago(HOUR))
    app.pause("mail")
    assert app.attempts.oldest_due().age == app.attempts.oldest_due("mail").age == dt.timedelta(0)
    app.resume("mail")
    assert app.attempts.oldest_due().queue == "mail"


@by_one_door
def test_what_it_leaves_out_it_says(app: AsyncTask, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oldest_due, "MOST_QUEUES", 2)
    for name in "ab":
        write(act, queue=name)
    assert app.attempts.oldest_due().is_complete is False
    assert "among the first" in words(app.health(), "oldest_due")
    assert app.attempts.oldest_due("a").is_complete


@pytest.mark.slow
def test_an_age_is_a_warning_from_one_limit_on_and_critical_from_the_other(app: AsyncTask, write: Write) -> None:
    assert app.health().state is OK
    assert words(app.health(queues=["mail"]), "oldest_due") == "nothing is due in queue mail"
    write(Client, "ping", queue="mail", scheduled_at=ago(dt.timedelta(seconds=600)))
    assert [app.health(warn_age=warn, critical_age=900).state for warn in (600, 660)] == [WARNING, OK]
    assert [app.health(warn_age=1, critical_age=critical).state for critical in (600, 660)] == [CRITICAL, WARNING]
    assert words(app.health(), "oldest_due") == "the oldest attempt has been due for 10 min, in queue mail"
    assert app.health(queues=["other"]).state is OK


# Workers and clocks


@pytest.mark.slow
@by_one_door
def test_fewer_workers_than_expected_are_a_warning_and_none_is_critical(app: AsyncTask, engine: Engine) -> None:
    assert states(app.health())["workers"] is OK
    assert states(app.health(workers=1))["workers"] is CRITICAL
    process(engine, "one")
    process(engine, "dead", silent=3600)
    process(engine, "a batch", kind="run-batch")
    process(engine, "mail", about=json.dumps({"queues": {"mail": 1}}))
    assert [states(app.health(workers=number))["workers"] for number in (1, 2, 3)] == [OK, OK, WARNING]
    assert words(app.health(workers=3), "workers") == "2 workers run, and at least 3 should"
    assert states(app.health(workers=2, queues=["slow"]))["workers"] is WARNING
    assert states(app.health(workers=2, queues=["slow", "mail"]))["workers"] is OK


@pytest.mark.slow
@by_one_door
def test_no_worker_is_a_warning_while_a_call_waits_for_one(app: AsyncTask, engine: Engine, write: Write) -> None:
    write(Client, "ping", scheduled_at=ago(4 * 24 * HOUR))
    assert states(app.health()) == {"database": OK, "oldest_due": CRITICAL, "workers": WARNING, "clock": OK}
    assert words(app.health(), "workers").startswith("no workers run: `async-task worker` or the next `async-task run-")
    assert states(app.health(workers=1))["workers"] is CRITICAL
    assert states(app.health(queues=["mail"]))["workers"] is OK
    assert (
        states(app.health(warn_age=120 * HOUR, critical_age=240 * HOUR))["workers"] is OK
    )  # a batch may be on its way
    process(engine, "one")
    assert (states(app.health())["workers"], words(app.health(), "workers")) == (OK, "1 worker runs")


@by_one_door
def test_a_worker_of_this_machine_that_has_no_heartbeat_does_not_count_as_running(
    app: AsyncTask, engine: Engine
) -> None:
    workers.beat(engine, TABLE, "frozen", LEASE, [], kind="worker")
    assert (app.health(workers=1).state, app.process_health().state) == (OK, OK)
    with engine.begin() as connection:
        connection.execute(update(Worker).values(beat_at=ago(dt.timedelta(seconds=90))))
    assert [one.is_dead for one in app.workers()] == [False]
    assert (app.health(workers=1).state, app.process_health().state) == (CRITICAL, CRITICAL)
    assert words(app.process_health(), "process").endswith("of this host runs: the last heartbeat was 90 s ago")


@by_one_door
def test_a_clock_must_tick_if_there_is_a_schedule_or_it_is_asked_for(engine: Engine, app: AsyncTask) -> None:
    assert (app.health().state, app.health(clock=True).state) == (OK, CRITICAL)
    schedule = Schedule()
    schedule.every(minutes=5, call=Client.ping)
    scheduled = AsyncTask(engine, schedule=schedule)
    assert (scheduled.health().state, scheduled.health(clock=False).state) == (CRITICAL, OK)
    assert words(scheduled.health(), "clock") == "no clock runs"
    process(engine, "hangs", kind="clock", silent=600)
    assert words(scheduled.health(), "clock") == "no clock runs, and the last one has ticked 10 min ago"
    process(engine, "ticks", kind="clock", silent=3)
    assert (scheduled.health().state, scheduled.health(workers=1).state) == (OK, CRITICAL)
    check = scheduled.health().check("clock")
    assert check is not None
    assert 3 <= (check.value or 0) < 10


@by_one_door
def test_one_process_is_checked_by_its_host_or_its_name(app: AsyncTask, engine: Engine) -> None:
    assert (app.process_health().state, app.process_health("web1").state) == (CRITICAL, CRITICAL)
    process(engine, "web1")
    assert (app.process_health().state, app.process_health("web1").state) == (CRITICAL, OK)
    process(engine, "clock", kind="clock", host=socket.gethostname())
    assert app.process_health().state is OK
    assert words(app.process_health("web2"), "process") == "no worker or clock named web2 runs"
    process(engine, "web2@pod:7:01234567")
    assert (app.process_health("web2").state, app.process_health("web").state) == (OK, CRITICAL)


# The database


def test_without_the_database_it_is_critical_and_a_process_is_unknown(door: str) -> None:
    drivers = {"sync": "postgresql+psycopg", "async": "postgresql+asyncpg"}
    away = AsyncTask(f"{drivers[door]}://me:s3cret@127.0.0.1:1/shop")
    assert states(away.health()) == {"database": CRITICAL}
    assert states(away.process_health()) == {"process": UNKNOWN}
    assert "s3cret" not in words(away.health(), "database")


class Other(DeclarativeBase): ...


class OtherAttempt(BaseAttempt, Other):
    __tablename__ = "attempts_that_nobody_made"


@by_one_door
def test_missing_tables_and_those_of_another_version_are_critical(app: AsyncTask, engine: Engine) -> None:
    assert "the database cannot be used: the database has no table" in words(
        AsyncTask(engine, model=OtherAttempt).health(), "database"
    )
    assert app.health().state is OK
    versioned = text("UPDATE async_task_schema SET version = version + :step")
    with engine.begin() as connection:
        connection.execute(versioned, {"step": 1})
    try:
        assert "upgrade the library" in words(app.health(), "database")  # also if they fitted when it was asked before
    finally:
        with engine.begin() as connection:
            connection.execute(versioned, {"step": -1})


@pytest.mark.only_on("postgresql")
@by_one_door
def test_a_database_that_does_not_answer_in_time_is_critical(app: AsyncTask, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("LOCK TABLE async_task_workers IN ACCESS EXCLUSIVE MODE"))
        began = time.monotonic()
        found = app.health(timeout=0.2)
        assert time.monotonic() - began < 5
    assert (found.state, found.checks[0].name) == (CRITICAL, "database")
    assert found.checks[0].words.endswith("it has not answered within 0.2 s")


@pytest.mark.in_turns
@by_one_door
@pytest.mark.parametrize(
    "wrong",
    [
        {"workers": -1},
        {"workers": True},
        {"warn_age": 2, "critical_age": 1},
        {"queues": "mail"},
        {"clock": 1},
        {"timeout": -1},
    ],
)
def test_an_invalid_expectation_is_refused(app: AsyncTask, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        app.health(**wrong)
