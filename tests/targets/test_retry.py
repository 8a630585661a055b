"""Retry policies: first their arithmetic, then their effect on attempts in the database."""

import datetime as dt
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

from async_task import (
    Again,
    AsyncTask,
    Attempt,
    ConfigurationError,
    Expired,
    Failed,
    NotPending,
    Retried,
    Retry,
    Status,
)
from async_task.targets.retry import DEFAULT_RETRY, LONGEST, duration
from clockwork import let_pass, row_of
from conftest import by_one_door
from outbox import Broken, act_by_default_policy, events_of, will

Write = Callable[..., Attempt]
SECOND, DAY = dt.timedelta(seconds=1), dt.timedelta(days=1)
TICK = dt.timedelta(microseconds=1)


def seconds(retry: Retry, errors: int, drawn: float = 1.0) -> float | None:
    delay = retry.delay(errors, lambda: drawn)
    return None if delay is None else delay.total_seconds()


def test_exponential_waits_factor_times_as_long_after_each_error_up_to_its_cap() -> None:
    retry = Retry.exponential(first=2, factor=3, cap=50, jitter=0)
    assert [seconds(retry, errors) for errors in range(1, 6)] == [2, 6, 18, 50, 50]


def test_the_default_is_exponential_from_15_s_cap_3_h_full_jitter_until_4_days() -> None:
    assert [seconds(DEFAULT_RETRY, errors) for errors in (1, 2, 3, 10, 11)] == [15, 30, 60, 7680, 10800]
    assert seconds(DEFAULT_RETRY, 11, 0.0) == 0
    assert (DEFAULT_RETRY.jitter, DEFAULT_RETRY.until, DEFAULT_RETRY.max_attempts) == (1.0, 4 * DAY, None)


@given(
    errors=st.integers(1, 10**9),
    factor=st.floats(1, 1e300) | st.integers(1, 10**9),
    first=st.floats(0, 1e9),
    cap=st.floats(0, 1e9),
)
def test_exponential_never_overflows_and_never_passes_its_cap(
    errors: int, factor: float, first: float, cap: float
) -> None:
    retry = Retry.exponential(first=first, factor=factor, cap=cap)
    delay, longest = retry.delay(errors, lambda: 1.0), duration(cap, name="cap")
    assert delay is not None
    assert dt.timedelta(0) <= delay <= longest
    if errors > 1:
        before = retry.delay(errors - 1, lambda: 1.0)
        assert before is not None
        assert before <= delay


def test_a_first_wait_of_zero_stays_zero() -> None:
    assert seconds(Retry.exponential(first=0), 5000) == 0


@given(drawn=st.floats(0, 1, exclude_max=True), jitter=st.floats(0, 1), errors=st.integers(1, 60))
def test_jitter_shortens_a_wait_by_at_most_its_share(drawn: float, jitter: float, errors: int) -> None:
    retry = Retry.exponential(jitter=jitter)
    longest, delay = retry.delays(errors), retry.delay(errors, lambda: drawn)
    assert longest is not None
    assert delay is not None
    assert longest * (1 - jitter) - TICK <= delay <= longest
    assert abs(delay - longest * (1 - jitter * (1 - drawn))) <= TICK


def test_every_always_waits_the_same() -> None:
    retry = Retry.every(dt.timedelta(minutes=1))
    assert [seconds(retry, errors, 0.0) for errors in (1, 2, 10**6)] == [60, 60, 60]
    assert (retry.max_attempts, retry.until) == (None, None)


def test_every_without_a_pause_has_an_end() -> None:
    assert seconds(Retry.every(0, max_attempts=3), 2) == 0
    assert Retry.every(0, until=60).until == dt.timedelta(minutes=1)


def test_a_schedule_waits_as_listed_and_ends() -> None:
    assert [seconds(Retry.schedule(60, 120, 300), errors) for errors in range(1, 6)] == [60, 120, 300, None, None]


def test_never_has_no_second_try() -> None:
    assert seconds(Retry.never(), 1) is None


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: Retry.every(0), "give max_attempts or until"),
    (lambda: Retry(60), "delays is a function"),  # type: ignore[arg-type]
    (lambda: Retry(lambda errors: 1, until="4 days"), "until takes a timedelta or seconds"),  # type: ignore[arg-type]
    (lambda: Retry.exponential(factor=0.5), "factor"),
    (lambda: Retry.exponential(factor=math.nan), "factor"),
    (lambda: Retry.exponential(factor="2"), "factor"),  # type: ignore[arg-type]
    (lambda: Retry.exponential(jitter=1.5), "jitter"),
    (lambda: Retry.exponential(jitter=-0.1), "jitter"),
    (lambda: Retry.exponential(jitter=math.nan), "jitter"),
    (lambda: Retry.exponential(jitter="full"), "jitter"),  # type: ignore[arg-type]
    (lambda: Retry.exponential(first=-1), "first cannot be negative"),
    (lambda: Retry.exponential(first=math.nan), "first takes a finite number"),
    (lambda: Retry.exponential(cap=math.inf), "cap takes a finite number"),
    (lambda: Retry.exponential(until=10**20), "until takes a finite number"),
    (lambda: Retry.every("60"), "interval takes a timedelta or seconds, not a str"),  # type: ignore[arg-type]
    (lambda: Retry.every(True), "interval takes a timedelta or seconds, not a bool"),
    (lambda: Retry.every(LONGEST + TICK), "interval is at most a thousand years"),
    (lambda: Retry.every(60, max_attempts=0), "max_attempts"),
    (lambda: Retry.every(60, max_attempts=1.5), "max_attempts"),  # type: ignore[arg-type]
    (lambda: Retry.schedule(60, -1), "schedule cannot be negative"),
]


@pytest.mark.parametrize(("make", "words"), BAD, ids=range(len(BAD)))
def test_a_bad_setting_is_refused_by_its_name(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make()


def fails_until_it_ends(app: AsyncTask, engine: Engine, attempt: Attempt, limit: int) -> list[type]:
    def break_it() -> None:
        raise Broken("no")

    will(break_it)
    ended: list[type] = []
    while len(ended) <= limit and (not ended or ended[-1] is Retried):
        ended.append(type(app.perform(attempt.id)))
        let_pass(engine, DAY / 2)
    return ended


@pytest.mark.slow
def test_max_attempts_is_the_number_of_errors_that_ends_failed(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(act_by_default_policy, max_attempts=3)
    assert fails_until_it_ends(app, engine, attempt, 5) == [Retried, Retried, Failed]
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_attempts, row.num_errors) == (Status.FAILED, 3, 3)
    assert row.last_error == "max_attempts used up: 3 of 3: Broken: no"
    assert [event.num_attempt for event in events_of(engine, attempt.id, "error")] == [1, 2, 3]


@pytest.mark.slow
@by_one_door
def test_until_is_measured_from_created_at(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(act_by_default_policy)
    # At 0, 12 h ... 84 h there is time for another wait of at most 3 h; at 96 h there is none.
    assert fails_until_it_ends(app, engine, attempt, 20) == [Retried] * 8 + [Failed]
    assert row_of(engine, attempt.id).last_error.startswith("the next try would be later than until = 4 days")


@pytest.mark.slow
@by_one_door
def test_until_is_measured_from_scheduled_at_if_there_is_one(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(act_by_default_policy, scheduled_at=dt.datetime.now(dt.UTC) + 3 * DAY)
    let_pass(engine, 3 * DAY + SECOND)
    assert fails_until_it_ends(app, engine, attempt, 20) == [Retried] * 8 + [Failed]


def test_an_attempt_whose_next_try_is_past_expires_at_ends_expired(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    def wait() -> Again:
        return Again(after=3600)

    attempt = write(act_by_default_policy, expires_at=dt.datetime.now(dt.UTC) + dt.timedelta(minutes=59))
    will(wait)
    outcome = app.perform(attempt.id)
    row = row_of(engine, attempt.id)
    assert isinstance(outcome, Expired)
    assert (row.status, row.num_attempts, row.num_errors) == (Status.EXPIRED, 1, 0)
    assert [event.kind for event in events_of(engine, attempt.id)] == ["expired"]


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["perform", "sweep", "run_batch"])
def test_an_attempt_that_was_never_tried_expires_too(app: AsyncTask, engine: Engine, write: Write, verb: str) -> None:
    called: list[str] = []
    will(lambda: called.append("called"))
    attempt = write(act_by_default_policy, expires_at=dt.datetime.now(dt.UTC) + dt.timedelta(minutes=1))
    let_pass(engine, 61)
    if verb == "perform":
        assert isinstance(app.perform(attempt.id), Expired)
        assert app.perform(attempt.id) == NotPending(attempt.id, Status.EXPIRED)
    else:
        assert getattr(app, verb)().expired == 1
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_attempts, called) == (Status.EXPIRED, 0, [])
    assert [event.kind for event in events_of(engine, attempt.id)] == ["expired"]


@pytest.mark.slow
@by_one_door
def test_an_untried_attempt_without_expires_at_never_ends_by_itself(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    will(lambda: None)
    attempt = write(act_by_default_policy)
    let_pass(engine, 400 * DAY)
    assert app.sweep().expired == 0
    assert app.run_batch().succeeded == 1
    assert row_of(engine, attempt.id).status is Status.SUCCEEDED


@by_one_door
def test_the_longest_wait_can_be_stored(app: AsyncTask, engine: Engine, write: Write) -> None:
    will(lambda: Again(after=LONGEST))
    attempt = write(act_by_default_policy)
    assert app.perform(attempt.id) == Retried(attempt.id, LONGEST)
    assert row_of(engine, attempt.id).due_at.year > 2900
