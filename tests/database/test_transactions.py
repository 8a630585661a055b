"""Transactions: on an engine or a connection, and repeated after transient errors."""

import psycopg
import pytest
from sqlalchemy import Connection, Engine, select
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from async_task.database.transactions import retry_transient, transaction_on
from outbox import effects


def _error(orig: BaseException, kind: type[DBAPIError] = OperationalError) -> DBAPIError:
    return kind("COMMIT", None, orig)


def test_work_is_repeated_after_a_transient_error() -> None:
    failures = [_error(psycopg.errors.DeadlockDetected()), _error(psycopg.errors.AdminShutdown(), DBAPIError)]

    def work() -> str:
        if failures:
            raise failures.pop()
        return "done"

    assert retry_transient(work) == "done"


def test_work_is_not_repeated_after_another_error() -> None:
    calls: list[int] = []

    def work() -> None:
        calls.append(1)
        raise _error(psycopg.errors.UniqueViolation(), IntegrityError)

    with pytest.raises(IntegrityError):
        retry_transient(work)
    assert calls == [1]


def test_a_transient_error_is_raised_when_patience_ends() -> None:
    def work() -> None:
        raise _error(psycopg.errors.DeadlockDetected())

    with pytest.raises(OperationalError):
        retry_transient(work, patience=0)


@pytest.mark.parametrize("given", ["engine", "connection"])
def test_a_transaction_on_an_engine_or_a_connection_is_committed_or_rolled_back(given: str, engine: Engine) -> None:
    with engine.connect() as connection:
        where = engine if given == "engine" else connection
        with transaction_on(where) as own:
            own.execute(effects.insert().values(what="kept"))
        with pytest.raises(ZeroDivisionError), transaction_on(where) as own:
            _write_and_raise(own)
    with engine.connect() as connection:
        assert connection.scalars(select(effects.c.what)).all() == ["kept"]


def _write_and_raise(connection: Connection) -> None:
    connection.execute(effects.insert().values(what="lost"))
    raise ZeroDivisionError
