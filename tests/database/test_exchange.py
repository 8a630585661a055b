"""Exchanges: what psycopg has prepared is executed in one round trip, and everything else by psycopg itself."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, bindparam, create_engine, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only, greenlet_spawn

from async_task.database.exchange import Query, exchange_of
from async_task.database.pipeline import COMMIT, Step, in_turn
from databases import Database

pytestmark = pytest.mark.only_on("postgresql")
INSERT = text("INSERT INTO exchanged VALUES (:number) RETURNING number, '%'").bindparams(bindparam("number"))
PREPARED = 8
"""Executions after which psycopg has prepared a statement."""


@pytest.fixture
def plain(database: Database) -> Iterator[Engine]:
    engine = create_engine(database.sync_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE exchanged (number int)"))
    yield engine
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE exchanged"))
    engine.dispose()


@pytest.fixture
def connection(plain: Engine, lane_connection: Connection) -> Connection:
    return lane_connection


@pytest.fixture
def executed(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was executed by psycopg itself."""
    driver: Any = connection.connection.driver_connection
    texts: list[str] = []
    execute = driver.execute

    def note(query: str, *given: Any, **more: Any) -> Any:
        texts.append(query)
        return execute(query, *given, **more)

    monkeypatch.setattr(driver, "execute", note)
    return texts


def insert(connection: Connection, number: int = 1) -> Any:
    with connection.begin():
        return in_turn(connection, Step(INSERT, {"number": number}), COMMIT)


def prepare(connection: Connection) -> None:
    for _ in range(PREPARED):
        insert(connection, 0)


def numbers(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        return list(connection.scalars(text("SELECT number FROM exchanged WHERE number > 0 ORDER BY number")))


def test_what_psycopg_has_prepared_is_exchanged(connection: Connection, plain: Engine, executed: list[str]) -> None:
    before = insert(connection, 1)
    prepare(connection)
    executed.clear()
    assert insert(connection, 1) == before
    assert executed == []
    assert numbers(plain) == [1, 1]


def test_a_transaction_begins_with_the_level_of_its_connection(connection: Connection, executed: list[str]) -> None:
    levels = []
    connection.execution_options(isolation_level="REPEATABLE READ")
    for _ in range(PREPARED):
        with connection.begin():
            level = Step(text("SHOW transaction_isolation"))
            levels.append(in_turn(connection, Step(INSERT, {"number": 1}), level)[1].rows[0][0])
    assert levels == ["repeatable read"] * PREPARED


def test_nothing_is_exchanged_if_psycopg_prepares_nothing(connection: Connection, executed: list[str]) -> None:
    driver: Any = connection.connection.driver_connection
    driver.prepare_threshold = None
    prepare(connection)
    executed.clear()
    insert(connection)
    assert len(executed) == 2


def test_nothing_is_exchanged_if_one_statement_is_not_prepared_yet(
    connection: Connection, plain: Engine, executed: list[str]
) -> None:
    prepare(connection)
    executed.clear()
    other = text("INSERT INTO exchanged SELECT :number").bindparams(bindparam("number"))
    with connection.begin():
        in_turn(connection, Step(INSERT, {"number": 1}), Step(other, {"number": 2}), COMMIT)
    assert len(executed) == 3
    assert numbers(plain) == [1, 2]


@pytest.mark.parametrize("sql", ["ROLLBACK TO SAVEPOINT here", "DEALLOCATE ALL"])
def test_what_was_deallocated_meanwhile_is_prepared_again(
    connection: Connection, plain: Engine, executed: list[str], sql: str
) -> None:
    """psycopg deallocates all statements after a ROLLBACK."""
    prepare(connection)
    with connection.begin():
        connection.exec_driver_sql("SAVEPOINT here")
        connection.exec_driver_sql(sql)
        in_turn(connection, Step(INSERT, {"number": 1}), COMMIT)
    prepare(connection)
    executed.clear()
    insert(connection, 2)
    assert executed == []
    assert numbers(plain) == [1, 2]


def test_a_plan_that_no_longer_fits_is_made_anew(connection: Connection, plain: Engine) -> None:
    every = Step(text("SELECT * FROM exchanged WHERE number = :number").bindparams(bindparam("number")), {"number": 1})
    for _ in range(PREPARED):
        with connection.begin():
            in_turn(connection, every)
    with plain.begin() as other:
        other.execute(text("ALTER TABLE exchanged ADD COLUMN more int"))
    with pytest.raises(DBAPIError, match="cached plan"), connection.begin():
        in_turn(connection, every)
    with connection.begin():
        assert in_turn(connection, every)[0].rows == []


def test_an_error_ends_the_exchange_and_nothing_is_committed(connection: Connection, plain: Engine) -> None:
    prepare(connection)
    with pytest.raises(DBAPIError) as raised, connection.begin():
        in_turn(connection, Step(INSERT, {"number": 1}), Step("SELECT 1 / 0"), COMMIT)
    assert not raised.value.connection_invalidated
    assert "SELECT 1 / 0" in str(raised.value)
    insert(connection, 2)
    assert numbers(plain) == [2]


def test_a_lost_connection_is_invalidated(connection: Connection, plain: Engine) -> None:
    prepare(connection)
    transaction = connection.begin()
    pid = connection.scalar(select(func.pg_backend_pid()))
    with plain.connect() as other:
        other.execute(select(func.pg_terminate_backend(pid, 10_000)))
    with pytest.raises(DBAPIError) as raised:
        in_turn(connection, Step(INSERT, {"number": 1}), COMMIT)
    assert raised.value.connection_invalidated
    assert connection.invalidated
    transaction.rollback()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_after_an_interrupt_the_connection_is_closed(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    prepare(connection)
    driver: Any = connection.connection.driver_connection
    invalidated = []

    def interrupt(*_: Any) -> None:
        raise error

    monkeypatch.setattr(driver, "wait", interrupt)
    monkeypatch.setattr(connection, "invalidate", lambda _: invalidated.append(driver.closed))
    transaction = connection.begin()
    with pytest.raises(error):
        in_turn(connection, Step(INSERT, {"number": 1}), COMMIT)
    assert driver.closed
    assert invalidated == [True] * (error is KeyboardInterrupt), "SQLAlchemy notices others by itself"
    monkeypatch.undo()
    connection.invalidate()
    transaction.rollback()


@pytest.mark.parametrize("door", ["async"])
def test_a_task_that_is_canceled_in_an_exchange_leaves_a_closed_connection(
    connection: Connection, plain: Engine
) -> None:
    prepare(connection)
    sleep = text("SELECT pg_sleep(:number)").bindparams(bindparam("number"))
    for _ in range(PREPARED):
        with connection.begin():
            in_turn(connection, Step(sleep, {"number": 0}))
    driver: Any = connection.connection.driver_connection
    running = text("SELECT query LIKE 'SELECT pg_sleep%' AND state = 'active' FROM pg_stat_activity WHERE pid = :pid")
    mine = {"pid": driver.pgconn.backend_pid}

    def exchange() -> None:
        with connection.begin():
            in_turn(connection, Step(INSERT, {"number": 1}), Step(sleep, {"number": 60}), COMMIT)

    async def cancel() -> None:
        task = asyncio.create_task(greenlet_spawn(exchange))
        with plain.connect().execution_options(isolation_level="AUTOCOMMIT") as other:
            while not (other.scalar(running, mine) or task.done()):
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not other.scalar(running, mine)

    await_only(cancel())
    assert driver.closed
    assert connection.invalidated
    assert numbers(plain) == []


@pytest.mark.parametrize("name", ["_read_only", "_deferrable"])
def test_psycopg_begins_a_transaction_that_has_more_than_a_level(connection: Connection, name: str) -> None:
    prepare(connection)
    driver: Any = connection.connection.driver_connection
    query = Query("SELECT 1", None)
    assert exchange_of(driver, [query]) is not None
    setattr(driver, name, True)
    assert exchange_of(driver, [query]) is None
    connection.invalidate()  # in the pool it would be read-only for other tests
