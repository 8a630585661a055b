"""Events name the actor that `acting` gave."""

import asyncio
import contextvars
import threading
import uuid
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from async_task import AsyncTask, Attempt, ConfigurationError, Status, acting
from async_task.schema.audit import current_actor
from clockwork import row_of
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
