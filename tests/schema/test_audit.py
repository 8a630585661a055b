"""Events name the actor that `acting` gave, and what a verb has changed."""

import asyncio
import contextvars
import datetime as dt
import json
import threading
import uuid
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from async_task import AsyncTask, Attempt, ConfigurationError, JobEvent, Schedule, Status, acting
from async_task.schema.audit import current_actor, read_change
from claims import orphan
from clockwork import let_pass, row_of
from conftest import by_one_door
from outbox import Client, events_of


def test_the_event_of_each_verb_names_the_actor(engine: Engine, sessions: sessionmaker[Session], write: Any) -> None:
    attempt = write(Client, "ping")
    with acting("anna@laptop"), sessions.begin() as session:
        mine = session.get(Attempt, attempt.id)
        assert mine is not None
        mine.reschedule(at=mine.due_at, reason="later")
        mine.cancel()
        mine.retry_now()
        mine.fail()
        mine.retry_now()
        mine.expire()
    assert {(event.kind, event.actor) for event in events_of(engine, attempt.id)} == {
        (verb, "anna@laptop") for verb in ("reschedule", "cancel", "retry_now", "fail", "expire")
    }


HOUR = dt.timedelta(hours=1)


@by_one_door
def test_the_event_of_a_verb_says_status_and_due_time_before_and_after_and_what_else_changed(
    app: AsyncTask, engine: Engine, sessions: sessionmaker[Session], write: Any
) -> None:
    attempt = write(Client, "fail", max_attempts=1, expires_at=dt.datetime.now(dt.UTC) + HOUR)
    later = dt.datetime(2031, 10, 25, 2, 30, tzinfo=dt.timezone(2 * HOUR))

    def say(verb: str, **given: Any) -> Any:
        with sessions.begin() as session:
            getattr(session.get_one(Attempt, attempt.id), verb)(**given)
        return row_of(engine, attempt.id)

    first = row_of(engine, attempt.id)
    moved = say("reschedule", at=later)
    hurried = say("retry_now")
    app.perform(attempt.id)
    let_pass(engine, 2 * HOUR)
    ended = row_of(engine, attempt.id)
    opened = say("retry_now", reason="once more")
    canceled = say("cancel", reason="no use")
    found = [event for event in app.attempts.events(attempt.id) if event.before]
    assert [(one.kind, one.message) for one in found] == [
        ("reschedule", None), ("retry_now", None), ("retry_now", "once more"), ("cancel", "no use"),
    ]  # fmt: skip
    pairs = [(first, moved), (moved, hurried), (ended, opened), (opened, canceled)]
    named = [set(), set(), {"expires_at", "num_errors"}, set()]
    for one, (before, after), others in zip(found, pairs, named, strict=True):
        for side, row in ((one.before, before), (one.after, after)):
            assert side == {name: getattr(row, name) for name in ("status", "due_at", *others)}
    assert found[0].after["due_at"] == later
    errors = [event for event in app.attempts.events(attempt.id) if event.kind == "error"]
    assert [(dict(one.before), dict(one.after), "Traceback" in (one.detail or "")) for one in errors] == [
        ({}, {}, True)
    ]


def test_the_event_of_a_verb_on_a_lost_claim_names_its_worker(
    engine: Engine, sessions: sessionmaker[Session], write: Any
) -> None:
    attempt = orphan(engine, write)
    with sessions.begin() as session:
        session.get_one(Attempt, attempt.id).cancel()
    (event,) = events_of(engine, attempt.id)
    sides = json.loads(event.detail)
    assert (sides["before"]["claimed_by"], sides["after"]["claimed_by"]) == ("gone:1:0", None)
    assert (sides["before"]["num_losses"], sides["after"]["num_losses"]) == (0, 1)


def test_pauses_of_queues_and_entries_leave_events_once(app: AsyncTask, engine: Engine) -> None:
    schedule = Schedule()
    schedule.every(hours=1, call=Client.ping, key="k" * 100)
    own = AsyncTask(engine, schedule=schedule)
    with acting("anna"):
        for pause, resume in (
            (partial(app.pause, "mail"), partial(app.resume, "mail")),
            (partial(own.schedule.pause, "k" * 100), partial(own.schedule.resume, "k" * 100)),
        ):
            assert (pause(reason="it moves"), pause(reason="again"), resume(), resume()) == (True, False, True, False)
    with Session(engine) as session:
        found = session.scalars(select(JobEvent).order_by(JobEvent.id)).all()
    assert [(one.job_type, one.kind, one.actor, one.message) for one in found] == [
        (job_type, kind, "anna", reason)
        for job_type in ("async_task_queues", "async_task_schedules")
        for kind, reason in (("pause", "it moves"), ("resume", None))
    ]
    assert found[0].job_id == "mail"
    for paused, resumed in (found[:2], found[2:]):
        assert paused.job_id == resumed.job_id
        before, after = (read_change(paused.detail, side) for side in ("before", "after"))
        assert before == {"paused_at": None, "paused_by": None, "pause_reason": None}
        assert (after["paused_by"], after["pause_reason"]) == ("anna", "it moves")
        assert isinstance(after["paused_at"], dt.datetime)
        assert (read_change(resumed.detail, "before"), read_change(resumed.detail, "after")) == (after, before)


def test_outside_of_acting_an_event_names_nobody(engine: Engine, sessions: sessionmaker[Session], write: Any) -> None:
    attempt = write(Client, "ping")
    with acting("anna"), acting("bert"):
        assert current_actor() == "bert"
    with sessions.begin() as session:
        session.get_one(Attempt, attempt.id).cancel()
    assert [event.actor for event in events_of(engine, attempt.id)] == [None]


def test_acting_applies_through_run_sync(engine: Engine, async_engine_url: str, write: Any) -> None:
    attempt = write(Client, "ping")

    async def cancel() -> None:
        own = create_async_engine(async_engine_url)
        async with AsyncSession(own) as session, session.begin():
            mine = await session.get_one(Attempt, attempt.id)
            with acting("anna"):
                await session.run_sync(mine.cancel, reason="moved")
        await own.dispose()

    asyncio.run(cancel())
    assert [(event.actor, event.message) for event in events_of(engine, attempt.id)] == [("anna", "moved")]


def test_acting_applies_through_an_application_on_either_engine(app: AsyncTask, engine: Engine, write: Any) -> None:
    attempt = write(Client, "ping")
    with acting("anna"):
        status = app.write(lambda session: _canceled(session, attempt.id))
    assert status is Status.CANCELED
    assert [event.actor for event in events_of(engine, attempt.id)] == ["anna"]


def _canceled(session: Session, attempt_id: uuid.UUID) -> Status:
    attempt = session.get_one(Attempt, attempt_id)
    attempt.cancel()
    return attempt.status


def test_app_write_is_rolled_back_when_its_function_raises(app: AsyncTask, engine: Engine, write: Any) -> None:
    attempt = write(Client, "ping")

    def cancel_and_raise(session: Session) -> None:
        _canceled(session, attempt.id)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        app.write(cancel_and_raise)
    assert row_of(engine, attempt.id).status is Status.PENDING
    assert events_of(engine, attempt.id) == []


def test_app_write_uses_a_session_of_the_users_class(engine: Engine) -> None:
    class Own(Session):
        """A subclass of the user."""

    made = AsyncTask(sessionmaker(engine, class_=Own, info={"tenant": "blue"}))
    assert made.write(lambda session: (isinstance(session, Own), session.info["tenant"])) == (True, "blue")


def test_acting_applies_to_its_context_and_to_no_other_thread() -> None:
    found: list[str | None] = []
    with acting("anna"):
        inherited = contextvars.copy_context()
        other = threading.Thread(target=contextvars.Context().run, args=(lambda: found.append(current_actor()),))
        other.start()
        other.join()
    assert found == [None]
    assert inherited.run(current_actor) == "anna"


@pytest.mark.parametrize("actor", ["", "a" * 256, "anna\n", None])
def test_an_invalid_actor_is_refused(actor: Any) -> None:
    with pytest.raises(ConfigurationError, match="an actor is a printable text of 1 to 255"), acting(actor):
        pass
