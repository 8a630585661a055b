"""Faults: errors of the infrastructure during a call are not charged, even if the call catches them. What the call does
to its own connection is charged."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, Engine, create_engine, event, insert, make_url, select, text, update
from sqlalchemy.exc import InternalError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from async_task import (
    Again,
    AsyncTask,
    Attempt,
    Discard,
    Failed,
    Parked,
    Retried,
    Retry,
    RetryAfter,
    Succeeded,
    target,
)
from async_task.database import connections
from async_task.execution import connection_state, group_commit, in_flight, performer, settle
from async_task.execution.settle import MAX_LOSSES
from async_task.worker import coroutines
from clockwork import let_pass, row_of
from databases import Database, somebody_waits
from elsewhere import await_
from outbox import (
    Broken,
    act,
    act_in_async_session,
    act_in_session,
    act_in_session_leased,
    act_later,
    calls,
    effects,
    events_of,
    will,
)
from shared_calls import claim_many, does, lock, numbered, put
from workers import counted, make, working

Write = Callable[..., Attempt]
both_doors = pytest.mark.parametrize("door", ["sync", "async"])
both_modes = pytest.mark.parametrize("target", [act_in_session, act_in_session_leased])
mysql_only = pytest.mark.only_on("mysql")


@pytest.fixture(autouse=True)
def _many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    claim_many(partial(monkeypatch.setattr, raising=False))


def meet_deadlock(engine: Engine, session: Session) -> None:
    """This session gets the error: the rival, which has the second row and wants the first, has written more."""
    with engine.begin() as connection:
        connection.execute(insert(effects), [{"what": f"row {number}"} for number in range(20)])
    _touch(session.connection(), "row 0")
    has_others = threading.Event()

    def rival() -> None:
        with engine.begin() as connection:
            for number in range(1, 20):
                _touch(connection, f"row {number}")
            has_others.set()
            _touch(connection, "row 0")

    thread = threading.Thread(target=rival)
    thread.start()
    assert has_others.wait(30)
    await_(lambda: somebody_waits(engine), "the rival waits")
    try:
        _touch(session.connection(), "row 1")
    finally:
        thread.join(timeout=30)


def _touch(connection: Connection, what: str) -> None:
    ids = connection.scalars(select(effects.c.id).where(effects.c.what == what)).all()
    connection.execute(update(effects).where(effects.c.id.in_(ids)).values(number=1))


def catch_deadlock(engine: Engine, session: Session) -> None:
    put(session, "before")
    with contextlib.suppress(OperationalError):
        meet_deadlock(engine, session)
    put(session, "after")


def of_the_call(engine: Engine) -> list[str]:
    """What the call has committed."""
    with engine.connect() as connection:
        return sorted(what for what in connection.scalars(select(effects.c.what)) if not what.startswith("row"))


@pytest.mark.in_turns
@mysql_only
@both_doors
@both_modes
@pytest.mark.parametrize("then", ["returns", "meets another fault", "reads what it wrote"])
def test_a_caught_deadlock_that_rolled_back_the_whole_transaction_is_not_charged(
    app: AsyncTask, engine: Engine, write: Write, target: Any, then: str
) -> None:
    [locked] = make(engine, act_in_session, queue="nobody's")
    attempt = write(target)

    def do(session: Session) -> None:
        calls.append(1)
        if len(calls) > 1:
            put(session, "again")
            return
        catch_deadlock(engine, session)
        if then == "meets another fault":
            wanted: Any = select(Attempt.id).where(Attempt.id == locked).with_for_update(nowait=True)
            with contextlib.suppress(OperationalError):
                session.execute(wanted)
        if then == "reads what it wrote":
            session.execute(select(effects).where(effects.c.what == "before")).one()

    will(do)
    with engine.begin() as connection:
        connection.execute(select(Attempt.id).where(Attempt.id == locked).with_for_update())
        assert isinstance(app.perform(attempt.id), Parked)
    row = row_of(engine, attempt.id)
    assert (row.claim_id, row.num_attempts, row.num_errors, row.num_crashes) == (None, 1, 0, 0)
    assert of_the_call(engine) == []
    let_pass(engine, 5)
    assert app.perform(attempt.id) == Succeeded(attempt.id)
    assert of_the_call(engine) == ["again"]


@pytest.mark.slow
@mysql_only
@both_modes
@pytest.mark.parametrize("then", ["raises", "commits"])
def test_an_error_or_commit_after_a_caught_deadlock_is_charged(
    app: AsyncTask, engine: Engine, write: Write, target: Any, then: str
) -> None:
    attempt = write(target)

    def do(session: Session) -> None:
        catch_deadlock(engine, session)
        if then == "commits":
            session.connection().commit()
        raise Broken

    will(do)
    outcome = app.perform(attempt.id)
    assert isinstance(outcome, Failed if then == "commits" else Retried)
    assert row_of(engine, attempt.id).num_errors == 1
    assert row_of(engine, attempt.id).last_error.startswith("committed_inside" if then == "commits" else "Broken")


@pytest.mark.long
@mysql_only
@both_doors
def test_a_caught_deadlock_in_a_shared_transaction_is_charged_to_no_call(app: AsyncTask, engine: Engine) -> None:
    """The calls before it were rolled back with it, and run again. Those after it run as usual."""

    def act(session: Session, number: int) -> None:
        if number == 2 and calls.count(2) == 1:
            catch_deadlock(engine, session)

    does(act)
    ids = numbered(engine, 5)
    with working(app, concurrency=1):
        await_(lambda: counted(engine) == {"succeeded": 5}, "all are at rest")
    assert of_the_call(engine) == ["0", "1", "2", "3", "4"]
    assert sorted(calls) == [0, 0, 1, 1, 2, 2, 3, 4]
    assert [one.kind for one in events_of(engine, ids[2])] == ["parked"]
    assert {(row_of(engine, one).num_errors, row_of(engine, one).num_crashes) for one in ids} == {(0, 0)}


def close_driver(session: Session) -> None:
    driver: Any = session.connection().connection.dbapi_connection
    driver.close()


def write_after_invalidate(session: Session) -> None:
    session.connection().invalidate()
    put(session, "77")


def close_connection(session: Session) -> None:
    with session.connection() as connection:  # as with one of an engine
        connection.execute(select(1))


DROPS: dict[str, Callable[[Session], Any]] = {
    "closes its connection": close_connection,
    "detaches it from its pool": lambda session: session.connection().detach(),
    "invalidates its connection": lambda session: session.connection().invalidate(),
    "invalidates its session": lambda session: session.invalidate(),
    "writes after that": write_after_invalidate,
    "returns it to the pool": lambda session: session.connection().connection.close(),
    "invalidates the pool's connection": lambda session: session.connection().connection.invalidate(),
}


@pytest.mark.slow
@both_doors
@both_modes
@pytest.mark.parametrize("how", DROPS)
def test_a_call_that_invalidates_its_own_connection_is_charged_at_once(
    app: AsyncTask, engine: Engine, write: Write, target: Any, how: str
) -> None:
    attempt = write(target)

    def drop(session: Session) -> None:
        put(session, "1")
        DROPS[how](session)

    will(drop)
    assert isinstance(app.perform(attempt.id), Retried)
    row = row_of(engine, attempt.id)
    assert (row.num_attempts, row.num_errors, row.num_crashes) == (1, 1, 0)
    assert row.last_error.startswith("InvalidState: the target invalidated the connection of its session")
    assert of_the_call(engine) == []


def leave_stream(session: Session) -> Any:
    rows = driver_of(session).cursor().stream("SELECT generate_series(1, 100000)")
    next(rows)
    return rows


def leave_copy(session: Session) -> Any:
    copy = driver_of(session).cursor().copy("COPY (SELECT generate_series(1, 100000)) TO STDOUT")
    next(iter(copy.__enter__()))
    return copy


def driver_of(session: Session) -> Any:
    return session.connection().connection.driver_connection


@pytest.mark.slow
@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize("door", ["sync"])
@pytest.mark.parametrize("leave", [leave_stream, leave_copy])
@pytest.mark.parametrize("then", ["returns", "raises"])
def test_a_statement_that_a_call_leaves_running_holds_up_nothing_and_is_charged(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch, leave: Any, then: str
) -> None:
    """psycopg lets every other statement wait for it. Who keeps it may be the traceback of an error."""
    monkeypatch.setattr(connection_state, "LONGEST_END", 0.05)
    attempt, kept = write(act_in_session), []

    def act(session: Session) -> None:
        put(session, "1")
        kept.append(leave(session))
        if then == "raises":
            raise LookupError("in the middle")

    will(act)
    assert isinstance(app.perform(attempt.id), Retried)
    row, charged = row_of(engine, attempt.id), {"returns": "InvalidState: the target", "raises": "LookupError: in the"}
    assert (row.num_attempts, row.num_errors, row.num_crashes) == (1, 1, 0)
    assert row.last_error.startswith(charged[then])
    assert of_the_call(engine) == []


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize("door", ["async"])
def test_the_same_holds_for_a_coroutine_and_its_connection(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt, kept = write(act_in_async_session), []

    async def act(session: AsyncSession) -> None:
        pooled = await (await session.connection()).get_raw_connection()
        driver: Any = pooled.driver_connection
        rows = driver.cursor().stream("SELECT generate_series(1, 100000)")
        await anext(rows)
        kept.append(rows)

    will(act)
    assert isinstance(app.perform(attempt.id), Retried)
    assert row_of(engine, attempt.id).last_error.startswith("InvalidState: the target invalidated the connection")


@pytest.mark.only_on("postgresql")
@both_doors
@both_modes
def test_a_call_may_catch_that_it_may_not_write(app: AsyncTask, engine: Engine, write: Write, target: Any) -> None:
    """It is by its own doing; a connection of ours that may not write is dropped."""
    attempt = write(target)

    def act(session: Session) -> None:
        with contextlib.suppress(InternalError), session.begin_nested():
            session.execute(text("DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '25006'; END $$"))
        put(session, "1")

    will(act)
    assert isinstance(app.perform(attempt.id), Succeeded)
    assert of_the_call(engine) == ["1"]


@pytest.mark.slow
@both_doors
@both_modes
@pytest.mark.parametrize("error", [ConnectionRefusedError, TimeoutError])
def test_an_error_of_a_connection_that_we_do_not_expect_is_not_charged(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch, target: Any, error: type[Exception]
) -> None:
    """As asyncpg raises them while it connects."""
    attempt, errors, settle_soundly = write(target), [error("refused")], performer.settle

    def settle_later(*given: Any) -> Any:
        if errors:
            raise errors.pop()
        return settle_soundly(*given)

    monkeypatch.setattr(performer, "settle", settle_later)
    will(lambda session: put(session, "1"))
    with pytest.raises(error):
        app.perform(attempt.id)
    row = row_of(engine, attempt.id)
    assert (row.num_errors, row.last_error) == (0, "parked: its performing was broken off")


@pytest.mark.slow
@both_doors
@both_modes
@pytest.mark.parametrize("verb", ["perform", "run_batch"])
def test_a_call_whose_outcome_we_cannot_write_is_charged(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch, target: Any, verb: str
) -> None:
    """Uncharged, it would be made again for ever, and would end each batch."""
    attempt, bugs, settle_soundly = write(target), [LookupError("a bug of ours")], performer.settle

    def settle_with_bug(*given: Any) -> Any:
        if bugs:
            raise bugs.pop()
        return settle_soundly(*given)

    monkeypatch.setattr(performer, "settle", settle_with_bug)
    will(lambda session: put(session, "1"))
    with pytest.raises(LookupError):
        app.perform(attempt.id) if verb == "perform" else app.run_batch()
    row = row_of(engine, attempt.id)
    assert (row.num_attempts, row.num_errors, row.claim_id) == (1, 1, None)
    assert row.last_error == "AsyncTaskError: its performing was broken off by LookupError"
    assert of_the_call(engine) == []


@pytest.mark.slow
@pytest.mark.parametrize("target", [act, act_later])
def test_a_call_whose_outcome_we_cannot_decide_is_charged(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch, target: Any
) -> None:
    decide_soundly, bugs = in_flight.decide, [LookupError("a bug of ours")]

    def decide_with_bug(*given: Any, **options: Any) -> Any:
        if bugs:
            raise bugs.pop()
        return decide_soundly(*given, **options)

    monkeypatch.setattr(in_flight, "decide", decide_with_bug)
    will(lambda: "done")
    attempt = write(target)
    app.run_batch()
    row = row_of(engine, attempt.id)
    assert (row.num_attempts, row.num_errors, row.claim_id) == (1, 1, None)
    assert row.last_error == "AsyncTaskError: what becomes of it could not be decided: LookupError"


@pytest.mark.slow
@pytest.mark.parametrize(("target", "module"), [(act, group_commit), (act_later, coroutines)])
def test_calls_of_a_group_whose_outcomes_we_cannot_write_are_charged(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch, target: Any, module: Any
) -> None:
    write_soundly, bugs = module.write_group, [LookupError("a bug of ours")]

    def write_with_bug(*given: Any) -> Any:
        if bugs:
            raise bugs.pop()
        return write_soundly(*given)

    monkeypatch.setattr(module, "write_group", write_with_bug)
    will(lambda: None)
    attempt = write(target)
    with contextlib.suppress(LookupError):  # a lane ends the batch, the loop goes on
        app.run_batch()
    row = row_of(engine, attempt.id)
    assert (row.num_attempts, row.num_errors, row.claim_id) == (1, 1, None)
    assert row.last_error == "AsyncTaskError: its performing was broken off by LookupError"


@pytest.mark.slow
@both_doors
def test_in_a_shared_transaction_only_the_call_that_invalidates_its_connection_is_charged(
    app: AsyncTask, engine: Engine
) -> None:
    does(lambda session, number: session.connection().invalidate() if number == 2 else None)
    ids = numbered(engine, 5)
    with working(app, concurrency=1):
        await_(lambda: counted(engine) == {"succeeded": 4, "pending": 1}, "the others are at rest")
        await_(lambda: row_of(engine, ids[2]).claim_id is None, "its error is written")
    assert [row_of(engine, one).num_errors for one in ids] == [0, 0, 1, 0, 0]
    assert of_the_call(engine) == ["0", "1", "3", "4"]
    assert sorted(calls) == [0, 0, 1, 1, 2, 3, 4]


@target("test.faults.cancel_statement", retry=Retry.every(60))
async def cancel_statement(session: AsyncSession) -> None:
    """As `asyncio.timeout` does it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.2):
            connection = await session.connection()
            sleep = "SELECT SLEEP(3)" if connection.dialect.name == "mysql" else "SELECT pg_sleep(3)"
            await session.execute(text(sleep))


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")
@pytest.mark.parametrize("door", ["async"])
def test_a_call_that_cancels_its_own_statement_is_charged(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(cancel_statement)
    assert isinstance(app.perform(attempt.id), Retried)
    assert row_of(engine, attempt.id).num_errors == 1


@pytest.mark.slow
@both_doors
@both_modes
def test_a_call_that_loses_its_connection_again_and_again_is_charged_in_the_end(
    app: AsyncTask, engine: Engine, write: Write, target: Any
) -> None:
    """It closes the driver's connection, which drivers report like one that the server has closed."""
    attempt = write(target)
    will(close_driver)
    for _ in range(MAX_LOSSES):
        assert isinstance(app.perform(attempt.id), Parked)
        let_pass(engine, 5)
    row = row_of(engine, attempt.id)
    assert (row.num_attempts, row.num_errors) == (MAX_LOSSES, 0)
    assert len(events_of(engine, attempt.id, "parked")) == 1
    assert isinstance(app.perform(attempt.id), Retried)
    row = row_of(engine, attempt.id)
    assert (row.num_attempts, row.num_errors, row.num_crashes) == (MAX_LOSSES + 1, 1, 0)
    assert row.last_error.startswith("ConnectionError: the call has lost its connection")


@pytest.mark.slow
def test_only_losses_in_a_row_are_counted(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(act_in_session)
    for wish in (close_driver, lambda session: Again(after=0), close_driver):
        will(wish)
        for _ in range(MAX_LOSSES if wish is close_driver else 1):
            assert isinstance(app.perform(attempt.id), Parked if wish is close_driver else Retried)
            let_pass(engine, 5)
    assert row_of(engine, attempt.id).num_errors == 0


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")
def test_lock_errors_are_never_charged(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(act_in_session)
    wanted: Any = select(effects.c.id).where(effects.c.what == "row 0")
    with engine.begin() as connection:
        connection.execute(insert(effects).values(what="row 0"))
    will(lambda session: session.execute(wanted.with_for_update(nowait=True)))
    with engine.begin() as connection:
        connection.execute(wanted.with_for_update())
        for _ in range(MAX_LOSSES + 2):
            assert isinstance(app.perform(attempt.id), Parked)
            let_pass(engine, 5)


@pytest.mark.only_on("postgresql")
def test_a_query_that_exceeds_its_own_limit_is_charged(app: AsyncTask, engine: Engine, write: Write) -> None:
    def act(session: Session) -> None:
        for said in ("SET LOCAL work_mem = '64kB'", "SET LOCAL temp_file_limit = '64kB'"):
            session.execute(text(said))
        session.execute(text("SELECT count(*) FROM (SELECT generate_series(1, 100000) g ORDER BY 1 DESC) q"))

    will(act)
    attempt = write(act_in_session)
    assert isinstance(app.perform(attempt.id), Retried)
    assert "temp_file_limit" in row_of(engine, attempt.id).last_error


@target("test.return_early", mode="leased", retry=Retry.never())
def return_early(session: Session) -> Any:
    return act_in_session_leased(session)


@pytest.mark.only_on("postgresql", "mysql")
@pytest.mark.parametrize("door", ["sync"])
def test_a_call_that_has_not_used_its_session_is_not_charged_for_a_lost_connection(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    numbers: list[int] = []

    def act(session: Session) -> None:
        numbers.append(1)
        end_connections(engine)  # also of the one that will be taken from the pool

    will(act)
    attempt = write(return_early)
    assert isinstance(app.perform(attempt.id), Succeeded)
    assert (row_of(engine, attempt.id).status, numbers) == ("succeeded", [1])


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize("driver", ["psycopg_async", "asyncpg"])
@pytest.mark.parametrize("called", [act, act_later])
def test_a_finished_call_is_not_made_again_after_an_outage(
    database: Database, engine: Engine, write: Write, driver: str, called: Any
) -> None:
    numbers: list[int] = []
    made = create_async_engine(make_url(database.sync_url).set(drivername=f"postgresql+{driver}"))

    def refuse(*_: Any) -> None:
        if numbers and len(numbers) < 4:
            numbers.append(0)
            raise ConnectionRefusedError("refused") if driver == "asyncpg" else psycopg.OperationalError("refused")

    def lose() -> None:
        end_connections(engine)
        numbers.append(1)

    async def lose_later() -> None:
        lose()

    event.listen(made.sync_engine, "do_connect", refuse)
    will(lose if called is act else lose_later)
    attempt = write(called)
    app = AsyncTask(made)
    app.run_batch(concurrency=1)
    app.close()
    engine.dispose()
    assert (row_of(engine, attempt.id).status, numbers) == ("succeeded", [1, 0, 0, 0])


def end_connections(engine: Engine) -> None:
    """Those of this database."""
    name, other = {"name": engine.url.database}, create_engine(engine.url, poolclass=NullPool)
    with engine.connect(), other.connect() as connection:
        if engine.dialect.name == "postgresql":
            others = "FROM pg_stat_activity WHERE datname = :name AND pid <> pg_backend_pid()"
            connection.execute(text(f"SELECT pg_terminate_backend(pid) {others}"), name)
            return
        listed = "SELECT id FROM information_schema.processlist WHERE db = :name AND id <> connection_id()"
        for number in connection.scalars(text(listed), name).all():
            with contextlib.suppress(OperationalError):  # it has just ended
                connection.execute(text(f"KILL {number}"))


@both_modes
@pytest.mark.only_on("postgresql", "mysql")
def test_a_call_that_catches_a_lock_error_may_decide_itself(
    app: AsyncTask, engine: Engine, write: Write, target: Any
) -> None:
    wanted: Any = select(effects.c.id).where(effects.c.what == "row 0")

    def decide(error: Exception) -> Callable[[Session], None]:
        def act(session: Session) -> None:
            try:
                session.execute(wanted.with_for_update(nowait=True))
            except OperationalError:
                raise error from None

        return act

    with engine.begin() as connection:
        connection.execute(insert(effects).values(what="row 0"))
    with engine.begin() as connection:
        connection.execute(wanted.with_for_update())
        for error, kind in ((RetryAfter("somebody is at it", after=600), Retried), (Discard("no more"), Failed)):
            will(decide(error))
            attempt = write(target)
            assert isinstance(app.perform(attempt.id), kind)
            assert row_of(engine, attempt.id).num_errors == 1


@pytest.mark.slow
@both_modes
@pytest.mark.only_on("postgresql", "mysql")
def test_the_last_flush_may_wait_as_long_as_the_call(
    app: AsyncTask, engine: Engine, write: Write, target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "WAITING", 0.3)
    monkeypatch.setattr(connections, "WAITING_FOR_MYSQL", 0.3)
    sleep = text("SELECT pg_sleep(0.8)" if engine.dialect.name == "postgresql" else "SELECT SLEEP(0.8)")

    def act(session: Session) -> None:
        put(session, "written")
        event.listen(session, "before_commit", lambda session: session.execute(sleep))  # as a flush does there

    will(act)
    attempt = write(target)
    with working(app):
        await_(lambda: row_of(engine, attempt.id).num_attempts == 1, "it is called")
        await_(lambda: row_of(engine, attempt.id).claim_id is None, "it has an outcome")
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_attempts, row.last_error) == ("succeeded", 1, None)
    assert of_the_call(engine) == ["written"]


@pytest.mark.only_on("mysql")
def test_the_next_call_has_another_connection_than_one_that_changed_its_database(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    name = engine.url.database
    acts = [
        lambda session: session.execute(text("USE information_schema")),
        *(lambda session: session.execute(insert(effects).values(what=session.scalar(text("SELECT database()")))),) * 3,
    ]
    will(lambda session: acts.pop(0)(session) and None)
    made = [write(act_in_session) for _ in range(4)]
    app.run_batch()
    assert [row_of(engine, one.id).status for one in made] == ["pending"] + ["succeeded"] * 3
    assert of_the_call(engine) == [name] * 3


@target("test.use_session_late", retry=Retry.every(60), mode="leased", timeout=1)
def use_session_late(session: Session) -> Any:
    return act_in_session_leased(session)


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")
def test_a_call_whose_row_stays_locked_until_the_server_cancels_the_lock_is_not_charged(
    database: Database, engine: Engine, write: Write
) -> None:
    options = {"options": "-c statement_timeout=300ms"} if engine.dialect.name == "postgresql" else {}
    own = create_engine(database.sync_url, connect_args=options)
    attempt = write(use_session_late)
    with engine.connect() as other:

        def lock_own_row(session: Session) -> None:
            lock(other, attempt.id)
            try:
                put(session, "late")
            finally:
                other.rollback()

        will(lock_own_row)
        assert isinstance(AsyncTask(own).perform(attempt.id), Parked)
    own.dispose()
    row = row_of(engine, attempt.id)
    assert (row.num_attempts, row.num_errors, row.last_error.startswith("parked")) == (1, 0, True), row.last_error


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("door", ["sync"])
def test_a_call_that_loses_the_connection_of_a_shared_transaction_again_and_again_is_charged(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "MAX_LOSSES", 1)
    does(lambda session, number: close_driver(session) if number == 2 else None)
    ids = numbered(engine, 5)
    with working(app, concurrency=1):
        await_(lambda: row_of(engine, ids[2]).num_errors == 1, "it is charged")
        await_(lambda: counted(engine) == {"succeeded": 4, "pending": 1}, "the others are at rest")
    assert calls.count(2) == 2
    assert [row_of(engine, one).num_errors for one in ids] == [0, 0, 1, 0, 0]
    assert of_the_call(engine) == ["0", "1", "3", "4"]
