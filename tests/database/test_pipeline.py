"""Pipelines: they return and raise what SQLAlchemy would, and leave the transaction as it would."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, bindparam, column, create_engine, event, func, literal_column, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from async_task.database.dialects import chains, pipelines
from async_task.database.pipeline import COMMIT, COMMIT_AND_BEGIN, Step, StepFailed, at_once, in_turn, try_in_turn
from databases import Database

pytestmark = pytest.mark.only_on("postgresql")
NUMBERS = func.generate_series(1, bindparam("most")).table_valued(column("number")).render_derived()
SERIES = select(NUMBERS.c.number, literal_column("'x'"))
DIVIDE = select(literal_column("1") / bindparam("by"))


@pytest.fixture
def plain(database: Database) -> Iterator[Engine]:
    """An engine without listeners."""
    engine = create_engine(database.sync_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE pipelined (number int UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
    yield engine
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE pipelined"))
    engine.dispose()


@pytest.fixture
def connection(plain: Engine, lane_connection: Connection) -> Connection:
    return lane_connection


@pytest.fixture
def pipelined(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements that were sent past SQLAlchemy."""
    driver: Any = connection.connection.driver_connection
    sent: list[str] = []
    execute = driver.execute

    def note(query: str, *given: Any, **more: Any) -> Any:
        sent.append(query)
        return execute(query, *given, **more)

    monkeypatch.setattr(driver, "execute", note)
    return sent


INSERT = text("INSERT INTO pipelined VALUES (:number)").bindparams(bindparam("number"))


def numbers(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        return sorted(connection.scalars(text("SELECT number FROM pipelined")))


def test_rows_and_row_counts_are_returned(connection: Connection, pipelined: list[str]) -> None:
    assert pipelines(connection)
    with connection.begin():
        assert at_once(connection, SERIES, {"most": 3}).rows == [(1, "x"), (2, "x"), (3, "x")]
        assert at_once(connection, SERIES, {"most": 0}).rows == []
        assert at_once(connection, INSERT, {"number": 1}).number == 1
    assert len(pipelined) == 3


def test_a_statement_is_part_of_the_transaction(connection: Connection, plain: Engine) -> None:
    with connection.begin() as transaction:
        at_once(connection, INSERT, {"number": 1})
        transaction.rollback()
    assert numbers(plain) == []


def test_with_commits_the_statement_is_committed_at_once_and_the_next_transaction_is_a_new_one(
    connection: Connection, plain: Engine
) -> None:
    with connection.begin():
        at_once(connection, INSERT, {"number": 1}, commits=True)
        assert numbers(plain) == [1]
    with connection.begin() as transaction:
        at_once(connection, INSERT, {"number": 2})
        transaction.rollback()
    assert numbers(plain) == [1]


def test_earlier_statements_of_the_transaction_are_committed_with_it(connection: Connection, plain: Engine) -> None:
    with connection.begin():
        connection.execute(INSERT, {"number": 1})
        at_once(connection, INSERT, {"number": 2}, commits=True)
    assert numbers(plain) == [1, 2]


def test_an_error_is_raised_as_sqlalchemy_does_and_nothing_is_committed(connection: Connection, plain: Engine) -> None:
    def divide() -> None:
        with connection.begin():
            connection.execute(INSERT, {"number": 1})
            at_once(connection, DIVIDE, {"by": 0}, commits=True)

    with pytest.raises(DBAPIError) as raised:
        divide()
    with pytest.raises(DBAPIError) as usual, connection.begin():
        connection.execute(DIVIDE, {"by": 0})
    assert type(raised.value) is type(usual.value)
    assert type(raised.value.orig) is type(usual.value.orig)
    assert not raised.value.connection_invalidated
    assert "0" not in str(raised.value.params)
    assert numbers(plain) == []
    with connection.begin():
        assert at_once(connection, DIVIDE, {"by": 1}).rows == [(1,)]


def test_the_error_of_a_commit_is_raised(connection: Connection, plain: Engine) -> None:
    with connection.begin():
        connection.execute(INSERT, {"number": 7})
    with pytest.raises(IntegrityError), connection.begin():
        at_once(connection, INSERT, {"number": 7}, commits=True)
    assert numbers(plain) == [7]


def test_a_lost_connection_is_invalidated(connection: Connection, plain: Engine) -> None:
    transaction = connection.begin()
    pid = at_once(connection, select(func.pg_backend_pid()), {}).rows[0][0]
    with plain.connect() as other:
        other.execute(select(func.pg_terminate_backend(pid, 10_000)))
    with pytest.raises(OperationalError) as raised:
        at_once(connection, SERIES, {"most": 1}, commits=True)
    transaction.rollback()
    assert raised.value.connection_invalidated
    assert connection.invalidated


@pytest.mark.slow
@pytest.mark.parametrize("begins", [True, False])
def test_after_a_loss_the_pool_hands_out_no_connection_that_is_older(
    lane_connection: Connection, plain: Engine, begins: bool
) -> None:
    heard: list[bool] = []
    engine = lane_connection.engine
    event.listen(engine, "handle_error", lambda context: heard.append(context.is_disconnect))
    with engine.connect() as first, engine.connect() as other:
        pids = [one.scalar(select(func.pg_backend_pid())) for one in (first, other)]
    connection = engine.connect()
    with plain.connect() as killer:
        for pid in pids:
            killer.execute(select(func.pg_terminate_backend(pid, 10_000)))
    assert connection.connection.driver_connection is not None
    with pytest.raises(DBAPIError), connection.begin() if begins else contextlib.nullcontext():
        at_once(connection, SERIES, {"most": 1}, commits=True)
    assert not connection.in_transaction()
    connection.close()
    assert heard == [True]
    for _ in range(2):
        with engine.connect() as again:
            assert at_once(again, SERIES, {"most": 1}, commits=True).number == 1


@pytest.mark.parametrize("prepares", [True, False])
def test_tasks_may_share_an_async_connection(database: Database, prepares: bool) -> None:
    """SQLAlchemy does not promise it, but the driver lets each statement wait for the one before."""

    def count(connection: Connection) -> list[int]:
        return [one.rows[0][0] for one in in_turn(connection, Step(DIVIDE, {"by": 1}), Step("SELECT 2"))]

    async def read(connection: AsyncConnection, number: int) -> set[int]:
        found = set()
        for one in range(60):
            found.add(await connection.scalar(text("SELECT 3")))
            await asyncio.sleep(0.0001 * (one % number))
        return found

    async def count_all(connection: AsyncConnection) -> list[list[int]]:
        found = []
        for _ in range(60):
            found.append(await connection.run_sync(count))
            await asyncio.sleep(0.0003)
        return found

    async def share() -> Any:
        engine = create_async_engine(database.async_url)
        try:
            async with engine.connect() as connection:
                if not prepares:
                    driver: Any = (await connection.get_raw_connection()).driver_connection
                    driver.prepare_threshold = None
                await connection.scalar(select(1))
                async with asyncio.timeout(20):
                    return await asyncio.gather(read(connection, 5), count_all(connection), read(connection, 7))
        finally:
            await engine.dispose()

    assert asyncio.run(share()) == [{3}, [[1, 2]] * 60, {3}]


def _query_until_it_fails(connection: Connection) -> None:
    while True:
        in_turn(connection, Step("SELECT 1"), COMMIT_AND_BEGIN, Step("SELECT 2"))


@pytest.mark.slow
def test_a_connection_is_invalidated_at_whatever_moment_it_is_lost(
    lane_connection: Connection, plain: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Sometimes the driver then cannot leave its pipeline, and raises that instead of the loss. It would log that too,
    and an outage would fill the log with it."""
    kill, rounds = text("SELECT pg_terminate_backend(:pid)"), 80
    for _ in range(rounds):
        with lane_connection.engine.connect() as connection, plain.connect() as other:
            connection.begin()
            pid = connection.scalar(select(func.pg_backend_pid()))
            other.scalar(select(1))
            killer = threading.Thread(target=other.scalar, args=(kill, {"pid": pid}))
            killer.start()
            with pytest.raises(DBAPIError) as raised:
                _query_until_it_fails(connection)
            killer.join()
            assert raised.value.connection_invalidated
            assert connection.invalidated
    assert [one.getMessage() for one in caplog.records if one.name == "psycopg"] == []


@pytest.mark.parametrize("name", ["before_execute", "after_execute", "before_cursor_execute", "after_cursor_execute"])
def test_statements_go_through_sqlalchemy_if_somebody_listens(
    connection: Connection, pipelined: list[str], name: str
) -> None:
    heard: list[Any] = []
    event.listen(connection, name, lambda *given, **more: heard.append(name))
    with connection.begin():
        assert at_once(connection, SERIES, {"most": 1}, commits=True).rows == [(1, "x")]
        assert connection.in_transaction()
    assert heard == [name]
    assert pipelined == []


def test_a_listener_to_the_commit_is_called_before_it(connection: Connection, plain: Engine) -> None:
    event.listen(connection, "commit", lambda connection: connection.execute(INSERT, {"number": 9}))
    with connection.begin():
        at_once(connection, INSERT, {"number": 1}, commits=True)
    assert numbers(plain) == [1, 9]


def test_a_listener_to_the_begin_is_called_before_the_statement(connection: Connection, plain: Engine) -> None:
    event.listen(connection, "begin", lambda connection: connection.exec_driver_sql("SET LOCAL search_path = nowhere"))
    with pytest.raises(DBAPIError, match="pipelined"), connection.begin():
        at_once(connection, INSERT, {"number": 1}, commits=True)
    assert numbers(plain) == []


def test_statements_go_through_sqlalchemy_if_it_translates_schemas(connection: Connection) -> None:
    assert not pipelines(connection.execution_options(schema_translate_map={None: "other"}))


def test_steps_after_a_failed_one_are_not_executed(connection: Connection, plain: Engine) -> None:
    def fail() -> None:
        with connection.begin():
            in_turn(connection, Step(INSERT, {"number": 1}), Step(DIVIDE, {"by": 0}), COMMIT)

    with pytest.raises(DBAPIError):
        fail()
    assert numbers(plain) == []


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_step_that_failed_is_known(connection: Connection, number: int) -> None:
    steps = [Step(DIVIDE, {"by": int(one != number)}) for one in range(3)]
    with pytest.raises(StepFailed) as raised, connection.begin():
        try_in_turn(connection, *steps)
    assert raised.value.number == number
    assert isinstance(raised.value.error, DBAPIError)


LIMIT = text("SELECT pg_backend_pid(), set_config('idle_in_transaction_session_timeout', :a_limit, true)")


@pytest.mark.parametrize("in_chain", [False, True])
def test_the_server_ends_a_transaction_that_idles_since_its_pipeline(
    connection: Connection, plain: Engine, in_chain: bool
) -> None:
    transaction = connection.begin()
    limit = Step(LIMIT.bindparams(bindparam("a_limit")), {"a_limit": "50"})
    steps = (Step("SELECT 1"), COMMIT_AND_BEGIN, limit) if in_chain else (limit,)
    pid = in_turn(connection, *steps)[-1].rows[0][0]
    with plain.connect().execution_options(isolation_level="AUTOCOMMIT") as other:
        alive, until = text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid"), time.monotonic() + 10
        while other.scalar(alive, {"pid": pid}) and time.monotonic() < until:
            time.sleep(0.01)
        assert not other.scalar(alive, {"pid": pid})
    with pytest.raises(DBAPIError) as raised:
        connection.scalar(select(1))
    assert raised.value.connection_invalidated
    transaction.rollback()


def test_the_transaction_after_a_commit_has_the_same_isolation_level(connection: Connection, plain: Engine) -> None:
    connection.execution_options(isolation_level="REPEATABLE READ")
    assert chains(connection)
    with connection.begin() as transaction:
        isolation = text("SHOW transaction_isolation")
        first, _, level, second = in_turn(
            connection, Step(INSERT, {"number": 1}), COMMIT_AND_BEGIN, Step(isolation), Step(INSERT, {"number": 2})
        )
        assert (first.number, level.rows, second.number) == (1, [("repeatable read",)], 1)
        assert numbers(plain) == [1]
        transaction.rollback()
    assert numbers(plain) == [1]


@pytest.mark.parametrize(("version", "can"), [((11, 22), False), ((12, 0), True)])
def test_an_old_server_does_not_chain(connection: Connection, version: tuple[int, ...], can: bool) -> None:
    connection.dialect.server_version_info = version  # of an engine that ends with the test
    assert pipelines(connection)
    assert chains(connection) is can


def test_the_driver_still_logs_what_happens_in_pipelines_of_the_user(
    connection: Connection, plain: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    driver: Any = connection.connection.driver_connection
    logging.getLogger("psycopg").warning("error ignored in %s", driver)
    assert "error ignored in" in caplog.text
