"""A session is given by position or by name, in the same way to everything that takes one."""

import asyncio
import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from async_task import Attempt, ConfigurationError, acting, add_note, events_of, notes_of
from operations import Batch
from reviews import Review
from writing import Client, Sessions, book, count, run_async

pytestmark = pytest.mark.usefixtures("registered")

LATER = dt.datetime(2099, 1, 1, tzinfo=dt.UTC)
CALL: dict[str, Any] = {"target": book, "method_args": {"number": 1}}
Verb = tuple[Callable[..., Any], dict[str, Any]]


def written(session: Session) -> Attempt:
    attempt = Attempt.create(session, **CALL)
    session.flush()
    return attempt


def writers() -> list[Verb]:
    rows = {"rows": [{"target": Client, "method_name": "hurry"}]}
    return [
        (Attempt.create, CALL),
        (Attempt.ensure, {**CALL, "idempotence_token": "T"}),
        (Attempt.ensure, {**CALL, "within": 3600}),
        (Attempt.ensure, {**CALL, "until_done": True}),
        (Attempt.create_many, rows),
    ]


def verbs(session: Session) -> list[Verb]:
    ended = written(session)
    ended.cancel(session)
    return [
        *((getattr(written(session), name), {"reason": "so"}) for name in ("expire", "fail", "cancel")),
        (ended.retry_now, {}),
        (written(session).reschedule, {"at": LATER}),
        (written(session).add_note, {"text": "note"}),
        (add_note, {"job": written(session), "text": "note"}),
        (notes_of, {"job": written(session)}),
        (events_of, {"job": written(session)}),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["position", "name"])
def test_both_ways_do_the_same(sessions: Sessions, engine: Engine, way: str) -> None:
    with acting("anna"), sessions.begin() as session:
        for verb, given in (*writers(), *verbs(session)):
            if way == "position":
                verb(session, **given)
            else:
                verb(session=session, **given)
    assert count(engine) >= len(writers())


def test_given_twice_it_is_refused_by_name(sessions: Sessions, engine: Engine) -> None:
    with sessions.begin() as session:
        all_of_them = (*writers(), *verbs(session))
        before = count_in(session)
        for verb, given in all_of_them:
            with pytest.raises(TypeError, match=r"got multiple values for argument 'session'"):
                verb(session, session=session, **given)
        assert count_in(session) == before


def count_in(session: Session) -> int:
    session.flush()
    return session.query(Attempt).count()


def test_what_is_no_session_is_refused(sessions: Sessions, engine: Engine) -> None:
    with sessions.begin() as session:
        for verb, given in (*writers(), *verbs(session)):
            with pytest.raises(ConfigurationError, match=r"session= takes a Session|first argument is a session"):
                verb("a reason", **given)


@pytest.mark.parametrize("name", ["submit_for_processing", "restart", "cancel", "attempted", "clear_error"])
@pytest.mark.parametrize("given", [(7,), ()])
def test_the_verbs_of_a_row_that_is_its_own_job_take_it_both_ways(name: str, given: tuple[Any, ...]) -> None:
    verb = getattr(Review(), name)
    with pytest.raises(ConfigurationError, match="session= takes a Session or an AsyncSession, not int"):
        verb(*given, **({} if given else {"session": 7}))


@pytest.mark.parametrize(("name", "more"), [("submit", {}), ("fail", {"reason": "so"})])
@pytest.mark.parametrize("given", [(7,), ()])
def test_so_do_those_of_an_operation(name: str, more: dict[str, Any], given: tuple[Any, ...]) -> None:
    verb = getattr(Batch(), name)
    with pytest.raises(ConfigurationError, match="session= takes a Session or an AsyncSession, not int"):
        verb(*given, **more, **({} if given else {"session": 7}))


def test_create_many_on_an_async_connection_says_how_to_call_it(engine: Engine, async_engine_url: str) -> None:
    async def body() -> None:
        made = create_async_engine(async_engine_url)
        async with made.begin() as connection:
            with pytest.raises(ConfigurationError, match=r"await connection.run_sync\(Attempt.create_many, rows\)"):
                Attempt.create_many(connection, [CALL])  # type: ignore[call-overload]
            assert len(await connection.run_sync(Attempt.create_many, [CALL])) == 1
        await made.dispose()

    asyncio.run(body())


def test_run_sync_gives_it_by_position(engine: Engine, async_engine_url: str) -> None:
    async def body(session: AsyncSession) -> None:
        attempt = Attempt.create(session, **CALL)
        await session.run_sync(Attempt.ensure, **CALL, idempotence_token="T")
        await session.run_sync(Attempt.create_many, [CALL])
        await session.run_sync(Attempt.create_many, rows=[CALL])
        await session.run_sync(attempt.cancel, reason="so")
        await session.commit()

    run_async(async_engine_url, body)
    assert count(engine) == 4
