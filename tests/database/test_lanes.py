"""Lanes: a call leaves nothing behind on the lane's own connection, and lanes run functions and coroutines."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text, update
from sqlalchemy.exc import InternalError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

import outbox
from async_task import AsyncTask, AsyncTaskError, Status
from async_task.database.answers import Raised
from async_task.database.disconnection import disconnect
from async_task.database.engines import Source
from async_task.database.lanes import LOCKED_LIMIT, Lane, open_lane
from async_task.database.transactions import retry_transient
from async_task.wakeup import after_commit
from clockwork import row_of
from databases import Database
from elsewhere import await_
from outbox import act_in_session, act_in_session_leased, act_shared, effects, events_of
from shared_calls import claim_many, numbered, written
from workers import at_rest, counted, make, working


@pytest.fixture(autouse=True)
def _many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    claim_many(lambda *given: monkeypatch.setattr(*given, raising=False))


def test_connection_options_that_a_target_sets_apply_to_its_call_only(app: AsyncTask, engine: Engine) -> None:
    found: list[Any] = []

    def change(session: Session) -> None:
        bind: Any = session.get_bind()
        found.append(bind.get_execution_options().get("schema_translate_map"))
        session.connection(execution_options={"schema_translate_map": {"nowhere": "elsewhere"}})

    outbox.acts[:] = [change]
    make(engine, act_in_session, 3)
    with working(app, concurrency=1):
        await_(lambda: at_rest(engine), "all are called")
    assert (counted(engine), found) == ({"succeeded": 3}, [None] * 3)


@pytest.mark.slow
@pytest.mark.parametrize("happening", ["checkin", "checkout", "reset"])
def test_listeners_to_the_pool_can_clear_what_a_call_has_set(
    database: Database, engine: Engine, happening: str
) -> None:
    own, found = create_engine(database.sync_url), list[Any]()
    event.listen(own, happening, lambda connection, record, *_: record.info.pop("tenant", None))

    def set_tenant(session: Session) -> None:
        info = session.connection().info
        found.append(info.get("tenant"))
        info["tenant"] = "blue"

    outbox.acts[:] = [set_tenant]
    make(engine, act_in_session, 3)
    with working(AsyncTask(own, lease=1), concurrency=1):
        await_(lambda: at_rest(engine), "all are called")
    own.dispose()
    assert (counted(engine), found) == ({"succeeded": 3}, [None] * 3)


@pytest.mark.parametrize("target", [act_in_session, act_shared])
def test_a_session_that_outlives_its_call_cannot_write_in_another_call(
    app: AsyncTask, engine: Engine, target: Any
) -> None:
    sessions: list[Session] = []

    def write_with_the_first(session: Session, number: int = 0) -> None:
        sessions.append(session)
        for _ in range(2):
            if session is not sessions[0]:
                with pytest.raises(AsyncTaskError, match="has ended"):
                    sessions[0].execute(effects.insert().values(what="100"))
                sessions[0].rollback()

    outbox.acts[:] = [write_with_the_first]
    if target is act_shared:
        numbered(engine, 3)
    else:
        make(engine, target, 3)
    with working(app, concurrency=1):
        await_(lambda: at_rest(engine), "all are called")
    assert counted(engine) == {"succeeded": 3}
    assert 100 not in written(engine)


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")
@pytest.mark.parametrize("target", [act_in_session, act_in_session_leased, act_shared])
def test_a_connection_lost_between_two_calls_parks_no_call(app: AsyncTask, engine: Engine, target: Any) -> None:
    used: list[Any] = []

    def lose_it(session: Session, number: int = 0) -> None:
        used.append(session)
        if len(used) == 1:
            used.append(session.connection())
        elif len(used) == 3:  # leased: it has not used the connection, which is idle
            disconnect(used[1])
        else:
            session.execute(text("SELECT 1"))

    outbox.acts[:] = [lose_it]
    make(engine, act_in_session, priority=0)
    make(engine, act_in_session_leased, priority=1)
    if target is act_shared:
        (last,) = numbered(engine, 1, priority=2)
    else:
        (last,) = make(engine, target, priority=2)
    with working(app, concurrency=1):
        await_(lambda: row_of(engine, last).num_attempts or events_of(engine, last), "it is performed, or parked")
        await_(lambda: at_rest(engine), "all are called")
    assert (counted(engine), events_of(engine, last, "parked")) == ({"succeeded": 3}, [])


@pytest.mark.slow
@pytest.mark.only_on("postgresql")
def test_a_leased_call_gets_another_connection_if_its_own_may_not_write(app: AsyncTask, engine: Engine) -> None:
    def write(session: Session) -> None:
        session.execute(text("SET SESSION default_transaction_read_only = on"))

    outbox.acts[:] = [write]
    make(engine, act_in_session, priority=0)
    (leased,) = make(engine, act_in_session_leased, priority=1)
    with working(app, concurrency=1):
        await_(lambda: row_of(engine, leased).status is Status.SUCCEEDED, "it is performed")
    assert events_of(engine, leased) == []
    assert row_of(engine, leased).num_attempts == 1
    engine.dispose()  # the other one may be in the pool


# What a lane runs


@pytest.fixture
def lane(engine: Engine, door: str, async_engine_url: str) -> Iterator[Lane]:
    given = engine if door == "sync" else create_async_engine(async_engine_url)
    with open_lane(Source(given)) as opened:
        yield opened


@pytest.mark.only_on("postgresql")
def test_connections_that_were_opened_while_the_database_was_read_only_are_dropped(lane: Lane, engine: Engine) -> None:
    """They stay read-only, as do those that lead to a server which is no longer the primary."""

    def open_some() -> None:
        some = [lane.engine.connect() for _ in range(3)]
        for one in some:
            one.execute(text("SET SESSION default_transaction_read_only = on"))
            one.commit()
            one.close()

    def write() -> None:
        with lane.engine.begin() as connection:
            written.append(connection.execute(update(effects).values(number=1)).rowcount)

    written: list[int] = []
    lane.run(open_some)
    lane.run(lambda: retry_transient(write, patience=0.2))
    assert written == [0]


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize("door", ["sync"])
def test_a_read_only_connection_of_the_users_is_left_to_them(lane: Lane, engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("SET TRANSACTION READ ONLY"))
        with pytest.raises(InternalError):
            connection.execute(update(effects).values(number=1))
        assert not connection.invalidated


def test_a_lane_returns_what_a_call_returned_and_keeps_apart_what_it_raised(lane: Lane) -> None:
    error = ZeroDivisionError()

    def fail() -> None:
        raise error

    for call in (lane.call, lane.call_with_session):
        assert lane.run(partial(call, lambda: error)) is error
        raised = lane.run(partial(call, fail))
        assert isinstance(raised, Raised)
        assert raised.error is error


@pytest.mark.parametrize("error", [ZeroDivisionError(), SystemExit(3), KeyboardInterrupt()])
def test_a_lane_survives_whatever_a_coroutine_raises(lane: Lane, error: BaseException) -> None:
    async def fail() -> None:
        raise error

    async def succeed() -> str:
        return "done"

    raised = lane.run(lambda: lane.run_coroutine(fail()))
    assert isinstance(raised, Raised)
    assert raised.error is error
    assert lane.run(lambda: lane.run_coroutine(succeed())) == "done"


def test_a_coroutine_that_cancels_its_own_task_has_raised(lane: Lane) -> None:
    async def cancel() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    raised = lane.run(lambda: lane.run_coroutine(cancel()))
    assert isinstance(raised, Raised)
    assert isinstance(raised.error, asyncio.CancelledError)


def test_a_plain_call_may_start_an_event_loop_of_its_own(lane: Lane) -> None:
    async def answer() -> int:
        return 42

    assert lane.run(lambda: lane.call(lambda: asyncio.run(answer()))) == 42


def test_work_during_a_call_uses_the_connection_of_the_lane(lane: Lane) -> None:
    found: list[Any] = []

    def call() -> None:
        with ThreadPoolExecutor(1) as other:
            found.append(other.submit(lane.run_during_call, lambda: lane.connection.scalar(text("SELECT 1"))).result())

    assert not isinstance(lane.run(lambda: lane.call(call)), Raised)
    assert found == [1]


@pytest.mark.only_on("postgresql", "mysql")
def test_our_own_listener_to_the_pool_takes_no_lane_its_connection(database: Database) -> None:
    own, seconds = create_engine(database.sync_url), LOCKED_LIMIT.total_seconds()
    event.listen(own, "checkin", after_commit._on_return)
    with open_lane(Source(own)) as lane:
        kept = lane.connection
        lane.return_connection(lane.lend_connection(), seconds, is_sound=True)
        assert lane.connection is kept
        event.listen(own, "checkin", lambda *_: None)
        lane.return_connection(lane.lend_connection(), seconds, is_sound=True)
        assert lane.connection is not kept
    own.dispose()
