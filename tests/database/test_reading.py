"""Inside of `outbox.reading` verbs only read, wait for nobody, and are ended in time; nothing of it stays."""

import asyncio
import contextlib
import pathlib
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, func, insert, select, text
from sqlalchemy.exc import OperationalError

from async_task import AsyncTask, Attempt, ConfigurationError, ReadTimeout
from async_task.database.reading import is_late, limited
from claims import TABLE
from databases import Database, impatient_engine
from outbox import Client, application, effects

Write = Callable[..., Attempt]
SLOW = {
    "postgresql": "SELECT pg_sleep({seconds})",
    "mysql": "SELECT SLEEP({seconds})",
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9e6 * {seconds}) "
    "SELECT count(*) FROM n",
}
"""A statement that takes about this time."""
SETTINGS = {
    "postgresql": "SELECT current_setting('statement_timeout'), current_setting('transaction_read_only')",
    "mysql": "SELECT @@max_statement_time, @@tx_read_only",
    "sqlite": "PRAGMA query_only",
}
SESSION = {"postgresql": "SELECT pg_backend_pid()", "mysql": "SELECT connection_id()", "sqlite": "SELECT 1"}


INSERT = "INSERT INTO effects (what) VALUES ('x')"


def asks(statement: str) -> Callable[[Any], Any]:
    return lambda session: session.execute(text(statement)).all()


@pytest.mark.slow
@pytest.mark.parametrize("door", ["sync", "async"])
def test_a_statement_that_takes_too_long_is_ended_and_its_connection_is_as_before(
    database: Database, engine: Engine, door: str
) -> None:
    single = create_engine(database.sync_url, pool_size=1, max_overflow=0, pool_timeout=1)
    app = application(single, door, database.async_url)
    name = database.name
    before = app.read(asks(SETTINGS[name])), app.read(asks(SESSION[name]))
    with app.reading(within=0.2):
        with pytest.raises(ReadTimeout, match=r"took longer than 0\.2 s"):
            app.read(asks(SLOW[name].format(seconds=6)))
        inside = app.read(asks(SETTINGS[name]))
        with app.reading(within=60):  # the innermost applies
            app.read(asks(SLOW[name].format(seconds=0.4)))
    assert inside != before[0] or name == "mysql"  # there it is said in each statement
    assert app.read(asks(SETTINGS[name])) == before[0]
    if door == "sync":
        assert app.read(asks(SESSION[name])) == before[1]
    app.write(lambda session: session.execute(effects.insert().values(what="written")))
    assert app.read(lambda session: session.scalar(select(func.count()).select_from(effects))) == 1
    single.dispose()


@pytest.mark.parametrize("statement", [INSERT, "CREATE TABLE reading_made (i INTEGER)"])
def test_what_would_write_is_refused_and_nothing_is_written(app: AsyncTask, engine: Engine, statement: str) -> None:
    with app.reading(), pytest.raises(ConfigurationError, match="only reads"):
        app.read(asks(statement))
    with app.reading(), pytest.raises(ConfigurationError, match="only reads"):
        app.read(lambda session: session.execute(insert(effects).values(what="x")))
    if engine.dialect.name == "mysql":  # where the server refuses what we have not
        with app.reading(), pytest.raises(ConfigurationError, match="READ ONLY transaction"):
            app.read(asks(f"SET STATEMENT max_statement_time = 9 FOR {INSERT}"))
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(effects)) == 0
        assert not engine.dialect.has_table(connection, "reading_made")


def test_a_reader_waits_for_no_writer_and_holds_none_up(
    app: AsyncTask, engine: Engine, database: Database, write: Write
) -> None:
    write(Client, "ping")
    other = impatient_engine(database, seconds=2)
    with other.connect() as writer, app.reading(within=1):
        writer.execute(TABLE.update().values(queue="mail"))
        assert [one.queue for one in app.attempts.list().attempts] == ["default"]
        writer.rollback()

        def write_meanwhile(session: Any) -> int:
            session.scalar(select(func.count()).select_from(effects))
            writer.execute(insert(effects).values(what="meanwhile"))
            writer.commit()
            return 17

        assert app.read(write_meanwhile) == 17
    with other.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(effects)) == 1
    other.dispose()


def test_a_reader_of_a_file_that_is_locked_waits_no_longer_than_it_may(tmp_path: pathlib.Path) -> None:
    app = AsyncTask(f"sqlite:///{tmp_path}/own.db")
    app.create_schema()
    with contextlib.closing(sqlite3.connect(tmp_path / "own.db", isolation_level=None)) as locking:
        locking.execute("PRAGMA locking_mode = EXCLUSIVE")
        locking.execute("BEGIN EXCLUSIVE")
        with app.reading(within=0.2), pytest.raises(ReadTimeout):
            app.attempts.list()
    with app.reading(within=0.2):
        assert app.read(asks("PRAGMA busy_timeout")) == [(200,)]


@pytest.mark.parametrize("code", [sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_BUSY_RECOVERY, sqlite3.SQLITE_ERROR])
def test_an_error_of_sqlite_says_that_it_took_too_long(code: int) -> None:
    error = sqlite3.OperationalError("it took too long")
    error.sqlite_errorcode = code
    assert is_late(error) is (code != sqlite3.SQLITE_ERROR)


@pytest.mark.slow
def test_the_limit_is_that_of_each_statement_and_not_of_the_transaction(app: AsyncTask, engine: Engine) -> None:
    longer_than_no_time = SLOW[engine.dialect.name].format(seconds=0.002)

    def linger(session: Any) -> int:
        session.execute(text(longer_than_no_time))
        time.sleep(0.6)
        return len(session.execute(text(longer_than_no_time)).all())

    with app.reading(within=0.5):
        assert app.read(linger) == 1


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")
def test_outside_of_it_a_statement_that_takes_too_long_raises_what_it_raised_before(
    app: AsyncTask, engine: Engine
) -> None:
    with app.reading():
        app.now()

    def limit_oneself(session: Any) -> None:
        if engine.dialect.name == "postgresql":
            session.execute(text("SET LOCAL statement_timeout = 100"))
        limit = "SET STATEMENT max_statement_time = 0.1 FOR " if engine.dialect.name == "mysql" else ""
        session.execute(text(limit + SLOW[engine.dialect.name].format(seconds=6)))

    with pytest.raises(OperationalError):
        app.read(limit_oneself)


@pytest.mark.slow
@pytest.mark.only_on("postgresql")
def test_health_and_dry_runs_do_not_wait_for_a_table_that_is_locked(app: AsyncTask, engine: Engine) -> None:
    app.check_schema()
    with engine.begin() as connection:
        connection.execute(text(f"LOCK TABLE {TABLE.name} IN ACCESS EXCLUSIVE MODE"))
        with app.reading(within=0.2):
            found = app.health(timeout=60)
            with pytest.raises(ReadTimeout):  # at once: it is not tried again and again
                app.prune("30d", dry_run=True)
            with pytest.raises(ReadTimeout):
                app.check_schema()
    assert found.state == "critical"
    assert "took longer than 0.2 s" in found.checks[0].words


def test_reading_applies_to_its_application_and_context_alone(app: AsyncTask, engine: Engine) -> None:
    other = AsyncTask(engine)

    async def paused() -> str:
        return await asyncio.to_thread(pause)

    def pause() -> str:
        try:
            return str(app.pause("mail"))
        except ConfigurationError as error:
            return str(error)

    answers = list[str]()
    with app.reading():
        thread = threading.Thread(target=lambda: answers.append(pause()))
        thread.start()
        thread.join()
        assert "pause changes or locks rows" in asyncio.run(paused())
        assert other.resume("mail")
        with other.reading():
            assert "pause changes or locks rows" in pause()
    assert answers == ["True"]
    assert pause() == "True"


@pytest.mark.parametrize("within", [0, 0.0001, -1, "2", True, 86_401])
def test_within_is_a_duration_from_a_millisecond_to_a_day(within: Any) -> None:
    with pytest.raises(ConfigurationError, match="within"), AsyncTask("sqlite:///nowhere.db").reading(within):
        raise AssertionError("it is not begun")


HINT = "/*+ MAX_EXECUTION_TIME(1500) */"


@pytest.mark.parametrize(
    ("statement", "on_mysql"),
    [
        ("SELECT 1", f"SELECT {HINT} 1"),
        ("\n /* a (b */ select 'SELECT (' FROM x", f"\n /* a (b */ select {HINT} 'SELECT (' FROM x"),
        ("(SELECT 1) UNION (SELECT 2)", f"(SELECT {HINT} 1) UNION (SELECT 2)"),
        (
            "WITH a AS (SELECT '\\')' FROM `(`) SELECT 2 FROM a",
            f"WITH a AS (SELECT '\\')' FROM `(`) SELECT {HINT} 2 FROM a",
        ),
        ("SELECT (SELECT 1), x.selected FROM x", f"SELECT {HINT} (SELECT 1), x.selected FROM x"),
        ("-- why\nDESCRIBE x", "-- why\nDESCRIBE x"),
    ],
)
def test_a_statement_of_mysql_has_a_hint_and_one_of_mariadb_a_setting_in_front(statement: str, on_mysql: str) -> None:
    assert limited(statement, 1500, in_front=False) == on_mysql
    assert limited(statement, 1500, in_front=True) == f"SET STATEMENT max_statement_time=1.5 FOR {statement}"


@pytest.mark.parametrize(
    "statement", ["SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", "SAVEPOINT a", "START TRANSACTION"]
)
def test_what_begins_or_divides_a_transaction_is_left_as_it_is(statement: str) -> None:
    assert {limited(statement, 9, in_front=one) for one in (True, False)} == {statement}


@pytest.mark.parametrize(
    "statement", ["DROP TABLE x", "/* SELECT */ alter TABLE x", "CALL me()", "-- a\nTRUNCATE x", ""]
)
def test_mysql_and_mariadb_are_not_sent_what_may_commit_a_transaction_that_only_reads(statement: str) -> None:
    with pytest.raises(ConfigurationError, match="only reads"):
        limited(statement, 9, in_front=True)
