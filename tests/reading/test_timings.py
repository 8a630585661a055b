"""How long attempts wait for their first try, and how long calls take."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, update

from async_task import AsyncTask, Attempt, Status
from async_task.reading import lately, timings
from conftest import by_one_door
from outbox import Client, act

Write = Callable[..., Attempt]
SECOND = dt.timedelta(seconds=1)


def tried(
    engine: Engine, attempt: Attempt, *, after: float, took: float | None, status: str = "succeeded", tries: int = 1,
    **values: Any,
) -> None:  # fmt: skip
    """It was started so many seconds after it was written, and ended so many after that."""
    start = attempt.created_at + after * SECOND
    ended = {} if took is None else {"status": Status(status), "completed_at": start + took * SECOND}
    with engine.begin() as connection:
        change = {"attempted_at": start, "num_attempts": tries} | ended | values
        connection.execute(update(Attempt).where(Attempt.id == attempt.id).values(change))


@pytest.mark.slow
def test_a_lag_is_that_of_a_first_try_which_was_due_when_it_was_written(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    nothing = app.attempts.lags()
    assert (nothing.number, nothing.p50, nothing.p95, nothing.is_complete) == (0, None, None, True)
    for number in range(1, 21):
        tried(engine, write(act), after=number, took=None if number == 3 else 1)
    tried(engine, write(act), after=100, took=1, tries=2)
    tried(engine, write(act, scheduled_at=app.now() + 60 * SECOND), after=100, took=1)
    tried(engine, write(act, order_key="k"), after=100, took=1)
    write(act)
    found = app.attempts.lags()
    assert (found.number, found.p50, found.p95) == (20, 10 * SECOND, 19 * SECOND)


@pytest.mark.slow
def test_durations_are_those_of_calls_that_ended_by_target_and_method(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    assert app.attempts.durations().by_call == ()
    for number in range(1, 101):
        tried(engine, write(Client, "ping"), after=1, took=number, status="failed" if number % 4 == 0 else "succeeded")
    tried(engine, write(Client, "poll"), after=7, took=0.25, tries=5)
    tried(engine, write(act), after=1, took=600, status="canceled")
    tried(engine, write(act), after=1, took=600, status="expired")
    tried(engine, write(act), after=1, took=None)
    write(act)
    found = app.attempts.durations()
    assert [(one.call, one.number, one.failed) for one in found.by_call] == [
        ("test.client.ping", 100, 0.25),
        ("test.client.poll", 1, 0),
    ]
    ping, poll = found.by_call
    assert (ping.p50, ping.p95, ping.p99) == (50 * SECOND, 95 * SECOND, 99 * SECOND)
    assert (poll.p50, poll.p99) == (SECOND / 4, SECOND / 4)


@pytest.mark.slow
@by_one_door
def test_a_backlog_hides_no_timings_and_the_last_ones_count(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        tried(engine, write(act), after=10 + number, took=50 if number == 11 else number)
    for _ in range(20):
        write(act)
    monkeypatch.setattr(lately, "READ", 10)
    monkeypatch.setattr(lately, "FEWEST", 10)
    monkeypatch.setattr(lately, "AHEAD", 1)
    lags, durations = app.attempts.lags(), app.attempts.durations()
    assert (lags.number, lags.p95, lags.is_complete, durations.is_complete) == (9, 29 * SECOND, False, False)
    monkeypatch.setattr(timings, "MOST", 4)
    assert [(one.number, one.p50) for one in app.attempts.durations().by_call] == [(4, 18 * SECOND)]
