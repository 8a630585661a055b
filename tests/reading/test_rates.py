"""How many attempts end a second, by queue and target; also behind a backlog, of which nothing new has ended."""

import datetime as dt
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, update

from async_task import AsyncTask, Attempt, Rate, Status
from async_task.reading import lately
from claims import claimed
from conftest import by_one_door
from outbox import Client, act

Write = Callable[..., Attempt]
MINUTE = dt.timedelta(minutes=1)
SECOND = dt.timedelta(seconds=1)


def end(engine: Engine, attempt: Attempt, ago: dt.timedelta, status: Status = Status.SUCCEEDED) -> None:
    now = dt.datetime.now(dt.UTC)
    with engine.begin() as connection:
        ended = {"status": status, "completed_at": now - ago, "num_attempts": 1}
        connection.execute(update(Attempt).where(Attempt.id == attempt.id).values(ended))


def be_created(engine: Engine, attempts: list[Attempt], ago: dt.timedelta) -> None:
    """As if they had been written that long ago, and had been due since then."""
    long_ago = dt.datetime.now(dt.UTC) - ago
    with engine.begin() as connection:
        created = update(Attempt).where(Attempt.id.in_([one.id for one in attempts]))
        connection.execute(created.values(created_at=long_ago, due_at=long_ago))


def read_few(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(lately, "READ", number)
    monkeypatch.setattr(lately, "FEWEST", number)


def backlog(engine: Engine, write: Write, *, ended: int, left: int) -> list[Attempt]:
    """Attempts written at once an hour ago, of which one a second has ended lately."""
    attempts = [write(Client, "ping", queue="mail") for _ in range(ended + left)]
    be_created(engine, attempts, 60 * MINUTE)
    for number, one in enumerate(attempts[:ended]):
        end(engine, one, (ended - number) * SECOND)
    return attempts


@pytest.mark.slow
def test_rates_are_what_ended_a_second_by_queue_and_target(app: AsyncTask, engine: Engine, write: Write) -> None:
    for number in range(6):
        end(engine, write(Client, "ping", queue="mail"), number * 5 * SECOND)
    end(engine, write(act, queue="mail"), 5 * MINUTE, Status.FAILED)
    end(engine, write(act), 5 * MINUTE, Status.CANCELED)
    end(engine, write(act, queue="slow"), 20 * MINUTE)
    write(act)
    found = app.attempts.rates()
    assert [one.queue for one in found.by_queue] == ["default", "mail"]
    ping = next(one for one in found.by_target if one.target == "test.client")
    assert ping.by_minute == (*[0] * 14, 6)
    assert {sum(one.by_minute) for one in found.by_target} == {6, 2}
    default, mail = found.by_queue
    assert (default.minute, default.quarter) == (Rate(0, 0), Rate(pytest.approx(1 / 900), 0))
    assert (mail.minute, mail.quarter) == (
        Rate(pytest.approx(6 / 60), 0),
        Rate(pytest.approx(7 / 900), pytest.approx(1 / 900)),
    )
    by_target = {one.target: (one.minute, one.quarter) for one in found.by_target}
    assert by_target == {
        "test.act": (Rate(0, 0), Rate(pytest.approx(2 / 900), pytest.approx(1 / 900))),
        "test.client": (Rate(pytest.approx(6 / 60), 0), Rate(pytest.approx(6 / 900), 0)),
    }
    assert (found.minute, found.quarter) == (
        Rate(pytest.approx(0.1), 0),
        Rate(pytest.approx(8 / 900), pytest.approx(1 / 900)),
    )
    assert found.is_complete


def test_without_attempts_nothing_ends(app: AsyncTask) -> None:
    found = app.attempts.rates()
    assert (found.by_queue, found.by_target, found.minute, found.is_complete) == ((), (), Rate(0, 0), True)


@pytest.mark.slow
@by_one_door
def test_where_more_end_than_are_read_a_rate_is_that_of_the_time_since_the_oldest(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = [write(act) for _ in range(30)]
    for number, one in enumerate(attempts):
        be_created(engine, [one], (30 - number) * SECOND)
        end(engine, one, (30 - number) * SECOND - SECOND / 2)
    read_few(monkeypatch, 10)
    found = app.attempts.rates()
    assert found.minute == found.quarter == Rate(pytest.approx(1, rel=0.15), 0)
    assert not found.is_complete


@pytest.mark.slow
@by_one_door
def test_a_backlog_hides_nothing_of_what_ends(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    backlog(engine, write, ended=60, left=50)
    read_few(monkeypatch, 40)
    [found] = app.attempts.rates().by_queue
    assert (found.queue, found.minute.ended) == ("mail", pytest.approx(1, rel=0.4))
    assert found.quarter.ended == pytest.approx(1, rel=0.4)


@pytest.mark.slow
@by_one_door
def test_a_retry_and_a_cancellation_among_a_backlog_mislead_nobody(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    retry = write(Client, "ping", queue="mail")
    for _ in range(50):
        end(engine, write(act), 60 * MINUTE)
    attempts = backlog(engine, write, ended=60, left=50)
    be_created(engine, [retry], 120 * MINUTE)
    end(engine, attempts[25], 50 * MINUTE, Status.CANCELED)
    read_few(monkeypatch, 40)
    [found] = app.attempts.rates().by_queue
    assert (found.queue, found.minute.ended) == ("mail", pytest.approx(1, rel=0.4))


@pytest.mark.slow
@by_one_door
def test_an_attempt_counts_once_where_a_backlog_begins_among_the_newest(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    backlog(engine, write, ended=60, left=5)
    for number in range(6):
        end(engine, write(act), number * SECOND)
    read_few(monkeypatch, 40)
    default, mail = app.attempts.rates().by_queue
    assert (mail.minute.ended, mail.quarter.ended) == (pytest.approx(1, rel=0.4), pytest.approx(1, rel=0.4))
    assert default.minute.ended == pytest.approx(0.1)


@pytest.mark.slow
@by_one_door
def test_due_attempts_that_nobody_performs_hide_nothing_of_what_ends(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [write(act, queue="mail") for _ in range(lately.AHEAD + 1)]
    attempts = backlog(engine, write, ended=60, left=50)
    be_created(engine, left, 120 * MINUTE)
    read_few(monkeypatch, 40)
    assert app.attempts.rates().by_queue == ()
    claimed(engine, attempts[60].id, "me")
    [found] = app.attempts.rates().by_queue
    assert (found.queue, found.minute.ended) == ("mail", pytest.approx(1, rel=0.4))


@pytest.mark.slow
@by_one_door
def test_what_waited_for_minutes_counts_in_a_long_queue(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Created one every two seconds, ended 80 s later, and the last 40 are due: all within the newest."""
    attempts = [write(act) for _ in range(130)]
    for number, one in enumerate(attempts):
        be_created(engine, [one], (130 - number) * 2 * SECOND)
        if number < 90:
            end(engine, one, (90 - number) * 2 * SECOND)
    read_few(monkeypatch, 80)
    found = app.attempts.rates()
    assert found.minute.ended == pytest.approx(0.5, rel=0.2)
    assert found.quarter.ended == pytest.approx(0.5, rel=0.2)


@pytest.mark.slow
@by_one_door
def test_the_rates_of_many_lines_are_read_in_several_statements(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        for priority in range(5):
            attempts = [write(act, priority=priority) for _ in range(3)]
            be_created(engine, attempts, 60 * MINUTE)
            end(engine, attempts[0], 30 * SECOND)
    read_few(monkeypatch, 20)
    before = app.attempts.rates()
    assert before.minute.ended > 0
    monkeypatch.setattr(lately, "PAGE", 2)
    assert app.attempts.rates().minute.ended == pytest.approx(before.minute.ended, rel=0.2)
