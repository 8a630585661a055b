"""Errors of drivers: which are transient, which mean that the database cannot be used, and who met a transient one."""

import sqlite3
from collections.abc import Iterator

import psycopg
import pymysql
import pytest
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from async_task.database.driver_errors import (
    FAULTS,
    is_statement_timeout,
    is_transient,
    is_unavailable,
    is_unusable,
    note_faults,
    transient_error,
)
from databases import Database

mysql_error = pymysql.err.OperationalError


@pytest.mark.parametrize(
    ("error", "transient", "unusable"),
    [
        (None, False, False),
        (psycopg.errors.DeadlockDetected(), True, True),
        (psycopg.errors.LockNotAvailable(), True, True),
        (psycopg.errors.AdminShutdown(), True, True),
        (psycopg.errors.ReadOnlySqlTransaction(), True, True),
        (psycopg.errors.DuplicatePreparedStatement(), True, True),
        (psycopg.errors.InvalidSqlStatementName(), True, True),
        (psycopg.errors.InvalidPassword(), False, True),
        (psycopg.errors.UndefinedTable(), False, False),
        (psycopg.OperationalError("connection refused"), False, True),
        (mysql_error(1213, "Deadlock found"), True, True),
        (mysql_error(2013, "Lost connection"), True, True),
        (mysql_error(1045, "Access denied"), False, True),
        (mysql_error(1054, "Unknown column"), False, False),
        (sqlite3.OperationalError("database is locked"), True, True),
        (sqlite3.OperationalError("attempt to write a readonly database"), True, True),
        (ZeroDivisionError(), False, True),
    ],
    ids=repr,
)
def test_an_error_is_transient_or_means_that_the_database_cannot_be_used(
    error: BaseException | None, transient: bool, unusable: bool
) -> None:
    assert is_transient(error) is transient
    if error is not None:
        assert is_unusable(error) is unusable


def test_a_refused_statement_of_sqlite_does_not_mean_that_the_database_cannot_be_used() -> None:
    with pytest.raises(sqlite3.OperationalError) as raised:
        sqlite3.connect(":memory:").execute("SELECT nothing")
    assert not is_transient(raised.value)
    assert not is_unusable(raised.value)


@pytest.mark.parametrize("error", [psycopg.errors.QueryCanceled(), mysql_error(1969, "max_statement_time exceeded")])
def test_a_statement_that_ran_too_long_is_recognized(error: BaseException) -> None:
    assert is_statement_timeout(error)
    assert not is_transient(error)


def test_the_transient_error_behind_another_one_is_found_also_in_a_circle() -> None:
    deadlock = DBAPIError("SELECT 1", None, psycopg.errors.DeadlockDetected())
    error = ValueError()
    error.__cause__, deadlock.__cause__ = deadlock, error
    assert transient_error(error) is deadlock
    refused = DBAPIError("SELECT 1", None, psycopg.errors.UndefinedTable())
    error.__cause__, refused.__cause__ = refused, error
    assert transient_error(error) is None


@pytest.fixture
def impatient(database: Database) -> Iterator[Connection]:
    """A connection of a dialect that notes faults, which waits for a lock for at most a second."""
    options = {"timeout": 0.01} if database.name == "sqlite" else {}
    engine = create_engine(database.sync_url, connect_args=options)
    note_faults(engine.dialect)
    note_faults(engine.dialect)  # a second time changes nothing
    waits = {"postgresql": "SET lock_timeout = 10", "mysql": "SET innodb_lock_wait_timeout = 1", "sqlite": "SELECT 1"}
    with engine.connect() as connection:
        connection.execute(text(waits[database.name]))
        connection.commit()
        yield connection
    engine.dispose()


@pytest.mark.slow
def test_a_connection_that_met_a_transient_error_is_remembered_even_if_the_error_was_caught(
    engine: Engine, impatient: Connection
) -> None:
    lock = text("INSERT INTO async_task_schema VALUES (77)")
    with engine.connect() as holder:
        holder.execute(lock)
        with pytest.raises(DBAPIError) as raised:
            impatient.execute(lock)
        assert is_transient(raised.value.orig)
        holder.rollback()
    assert FAULTS[impatient] is False  # the server did not roll back the transaction


def test_an_error_of_a_statement_is_not_remembered(impatient: Connection) -> None:
    with pytest.raises(DBAPIError):
        impatient.execute(text("SELECT nothing"))
    assert impatient not in FAULTS


class OfAsyncpg(Exception):
    def __init__(self, sqlstate: str | None) -> None:
        super().__init__("said")
        self.sqlstate = sqlstate


def test_an_outage_is_told_by_the_most_general_error_too() -> None:
    """SQLAlchemy gives that class to most errors of asyncpg."""
    assert is_unavailable(DBAPIError("SELECT 1", None, OfAsyncpg("57P01")))
    assert is_unavailable(DBAPIError("SELECT 1", None, OfAsyncpg(None), connection_invalidated=True))
    assert not is_unavailable(DBAPIError("SELECT 1", None, OfAsyncpg("42P01")))
