"""`delay`: due that long after the row is written, by the database's clock."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from async_task import AsyncTask, Attempt, InvalidArguments, Retry
from async_task.attempts.draft import draft
from clockwork import let_pass, row_of
from conftest import by_one_door
from outbox import act, will
from writing import Client, Sessions, book, count, database_clock, run_async

HOUR = dt.timedelta(hours=1)
NOON = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
CALL: dict[str, Any] = {"target": book, "method_args": {"number": 1}}
Verb = Callable[[Session, dict[str, Any]], Any]
VERBS: dict[str, Verb] = {
    "create": lambda session, call: Attempt.create(session, **call).id,
    "options": lambda session, call: Attempt.options(session=session, delay=call["delay"]).call(book, 1).id,
    "ensure": lambda session, call: Attempt.ensure(session, **call, idempotence_token="T").id,
    "create_many": lambda session, call: Attempt.create_many(session, [call])[0],
    "create_many of many": lambda session, call: Attempt.create_many(session, [call] * 5)[4],
}


@pytest.mark.in_turns
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("delay", "length"), [(90, 90), (HOUR, 3600), ("1h30min", 5400), (0.25, 0.25), (0, 0)])
def test_it_is_due_that_long_after_it_is_written(
    sessions: Sessions, engine: Engine, verb: str, delay: Any, length: float
) -> None:
    before = database_clock(engine)
    with sessions.begin() as session:
        made = VERBS[verb](session, {**CALL, "delay": delay})
    row, after = row_of(engine, made), database_clock(engine)
    assert row.due_at == row.scheduled_at
    written_at = row.scheduled_at - dt.timedelta(seconds=length)
    assert before - dt.timedelta(milliseconds=1) <= written_at <= after  # SQLite's clock has milliseconds


@by_one_door
def test_until_and_max_age_count_from_then(app: AsyncTask, sessions: Sessions, engine: Engine) -> None:
    with sessions.begin() as session:
        aged = Attempt.create(session, target=Client, method_name="hurry", delay=HOUR).id
        many = Attempt.create_many(session, [{"target": Client, "method_name": "hurry", "delay": HOUR}] * 4)
        own = Attempt.create(session, target=Client, method_name="hurry", delay=HOUR, expires_at=NOON).id
        patient = Attempt.create(session, target=act, delay=HOUR, retry=Retry.every(60, until=600)).id
    for one in (aged, *many):
        row = row_of(engine, one)
        assert abs(row.expires_at - row.scheduled_at - dt.timedelta(seconds=60)) < dt.timedelta(milliseconds=2)
    assert row_of(engine, own).expires_at == NOON
    will(_raise)
    let_pass(engine, HOUR)
    assert type(app.perform(patient)).__name__ == "Retried"  # an hour old, and wanted just now
    let_pass(engine, 700)
    assert type(app.perform(patient)).__name__ == "Failed"


def _raise() -> None:
    raise ValueError("no")


@pytest.mark.slow
@by_one_door
def test_it_is_not_performed_before(app: AsyncTask, sessions: Sessions, engine: Engine) -> None:
    with sessions.begin() as session:
        Attempt.create(session, target=Client, method_name="fulfill", method_args={"token": "t"}, delay=HOUR)
    assert app.run_batch().claimed == 0
    let_pass(engine, HOUR)
    assert app.run_batch().succeeded == 1


@pytest.mark.parametrize(("delay", "is_due"), [(None, True), (0, True), ("0s", True), (0.001, False), (HOUR, False)])
def test_only_without_length_are_waiting_workers_woken(delay: Any, is_due: bool) -> None:
    assert draft({}, **CALL, delay=delay).is_due_at_once is is_due


@pytest.mark.slow
@by_one_door
@pytest.mark.parametrize("rows", [1, 5])
def test_without_length_it_is_due_at_once(app: AsyncTask, sessions: Sessions, rows: int) -> None:
    with sessions.begin() as session:
        call = {"target": Client, "method_name": "fulfill", "method_args": {"token": "t"}, "delay": 0}
        Attempt.create_many(session, [call] * rows)
    assert app.run_batch().succeeded == rows


@pytest.mark.in_turns
@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"delay": -1}, "delay cannot be negative, and was -1 s"),
        ({"delay": dt.timedelta(days=-1)}, "delay cannot be negative"),
        ({"delay": "soon"}, "delay is a length of time like .* and was 'soon'"),
        ({"delay": True}, "delay takes a timedelta or seconds, not a bool"),
        ({"delay": NOON}, "delay takes a timedelta or seconds, not a datetime"),
        ({"delay": float("nan")}, "delay takes a finite number of seconds"),
        ({"delay": dt.timedelta.max}, "delay is at most a thousand years"),
        ({"delay": 0, "scheduled_at": NOON}, "delay: give a delay or scheduled_at, not both"),
    ],
)
def test_what_is_no_delay_is_refused_before_anything_is_written(
    sessions: Sessions, engine: Engine, given: dict[str, Any], why: str
) -> None:
    with sessions.begin() as session:
        for verb in ("create", "ensure", "create_many"):
            with pytest.raises(InvalidArguments, match=why):
                VERBS[verb](session, CALL | given)
    assert count(engine) == 0


def test_a_delayed_attempt_can_be_read_on_an_async_session(engine: Engine, async_engine_url: str) -> None:
    async def body(session: AsyncSession) -> tuple[Any, Any]:
        made = Attempt.create(session, target=book, method_args={"number": 1}, delay=HOUR)
        assert not made.is_due
        await session.flush()
        await session.refresh(made)
        found = made.scheduled_at, made.due_at
        await session.commit()
        return found

    scheduled_at, due_at = run_async(async_engine_url, body)
    assert scheduled_at == due_at > database_clock(engine)
