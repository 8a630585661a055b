"""Calls that a target writes down without `session=`: they are written in the session that the target was handed."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, func, insert, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from async_task import AsyncTask, Attempt, ConfigurationError, NoTransaction, Retried, Succeeded, target
from clockwork import row_of
from conftest import by_one_door
from outbox import Broken, act_in_async_session, act_in_session, act_in_session_leased, act_shared, effects, will

Write = Callable[..., Attempt]


@target("handed.follow")
def follow() -> None: ...


def number_of_followers(engine: Engine) -> int:
    with engine.connect() as connection:
        found = select(func.count()).select_from(Attempt).where(Attempt.target == "handed.follow")
        return connection.scalar(found) or 0


@pytest.mark.slow
@pytest.mark.parametrize("performed", [act_in_session, act_in_session_leased, act_shared])
def test_a_target_writes_a_call_down_before_it_has_used_its_session(
    app: AsyncTask, engine: Engine, write: Write, performed: Any
) -> None:
    will(lambda *_: Attempt.call(follow) and None)
    write(performed, None, {"number": 1} if performed is act_shared else None)
    assert app.run_batch().succeeded == 1
    assert number_of_followers(engine) == 1


def test_the_call_is_rolled_back_with_the_target(app: AsyncTask, engine: Engine, write: Write) -> None:
    def follow_and_fail(session: Session) -> None:
        Attempt.call(follow)
        raise Broken

    will(follow_and_fail)
    assert isinstance(app.perform(write(act_in_session).id), Retried)
    assert number_of_followers(engine) == 0


@pytest.mark.parametrize("door", ["async"])
def test_a_coroutine_writes_a_call_down_before_it_has_used_its_session(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    async def write_down(session: AsyncSession) -> None:
        Attempt.call(follow)

    will(write_down)
    assert isinstance(app.perform(write(act_in_async_session).id), Succeeded)
    assert number_of_followers(engine) == 1


@pytest.mark.parametrize("door", ["async"])
def test_two_tasks_that_use_the_session_first_get_one_transaction(app: AsyncTask, engine: Engine, write: Write) -> None:
    """As in SQLAlchemy alone: both are served, or the second one is refused at once."""

    async def gather(session: AsyncSession) -> None:
        await asyncio.gather(*(session.execute(insert(effects).values(what=what)) for what in ("one", "other")))

    will(gather)
    attempt = write(act_in_async_session)
    outcome = app.perform(attempt.id)
    with engine.connect() as connection:
        found = sorted(connection.scalars(select(effects.c.what)))
    if isinstance(outcome, Succeeded):
        assert found == ["one", "other"]
    else:
        assert isinstance(outcome, Retried)
        assert str(outcome.error).startswith(("InvalidRequestError", "InvalidState: the target"))
        assert found == []
    assert row_of(engine, attempt.id).num_attempts == 1


@by_one_door
def test_a_target_may_begin_its_session_itself(app: AsyncTask, engine: Engine, write: Write) -> None:
    def begin(session: Session) -> None:
        with session.begin():
            Attempt.call(follow)

    will(begin)
    assert isinstance(app.perform(write(act_in_session).id), Succeeded)
    assert number_of_followers(engine) == 1


@by_one_door
def test_a_thread_of_the_target_does_not_find_its_session(app: AsyncTask, engine: Engine, write: Write) -> None:
    refused: list[NoTransaction] = []

    def elsewhere() -> None:
        try:
            Attempt.call(follow)
        except NoTransaction as error:
            refused.append(error)

    def start_thread(session: Session) -> None:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()

    will(start_thread)
    assert isinstance(app.perform(write(act_in_session).id), Succeeded)
    assert [str(error)[:14] for error in refused] == ["give session=,"]


@pytest.mark.usefixtures("registered")
def test_a_coroutine_that_takes_a_session_is_refused_at_the_start_on_an_async_engine(
    app: AsyncTask, engine: Engine, write: Write, door: str
) -> None:
    @target("handed.blocking")
    async def blocking(session: Session) -> None:
        session.execute(select(1))

    attempt = write(blocking)
    if door == "sync":
        assert isinstance(app.perform(attempt.id), Succeeded)
        return
    for start in (app.run_batch, app.worker().run, lambda: app.perform(attempt.id)):
        with pytest.raises(ConfigurationError, match="take an AsyncSession and await it, or make it a plain def"):
            start()
    row = row_of(engine, attempt.id)
    assert (row.num_attempts, row.num_errors, row.last_error) == (0, 0, None)
