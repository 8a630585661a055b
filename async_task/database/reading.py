"""Transactions that only read, and each of whose statements the database ends after a time.

1. PostgreSQL: two settings of the transaction, by one statement at its beginning.
2. MariaDB: SET STATEMENT in front of each statement. MySQL: a hint in each SELECT.
3. SQLite: a handler that looks at the time, on a connection that nobody else uses.

Nothing of it stays set on a connection of a pool.
"""

import re
import sqlite3
import time
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import Dialect

from async_task.database.dialects import has_schemas, is_mariadb, locks_rows
from async_task.database.driver_errors import is_statement_timeout, sqlstate_of
from async_task.database.transaction_start import READS_WITHIN
from async_task.errors import AsyncTaskError, ConfigurationError, ReadTimeout

STEPS = 10_000
"""Instructions of SQLite between two looks at the time: fractions of a millisecond."""


def reading_engine(engine: Engine, within: float) -> Engine:
    """An engine on the pool of `engine`, whose transactions only read. A statement that takes longer than `within`
    seconds raises ReadTimeout, and one that would write ConfigurationError (`explain_refusals`). On SQLite nobody else
    may use that pool, now or later."""
    reading = engine.execution_options(**{READS_WITHIN: within})
    if not locks_rows(engine.dialect):
        _limit_sqlite(reading, within)
    elif has_schemas(engine.dialect):
        event.listen(reading, "begin", _limit_transaction)
    else:
        event.listen(reading, "before_cursor_execute", _limit_statement, retval=True)
    return reading


def explain_refusals(dialect: Dialect) -> None:
    """Let the engines of this dialect that only read raise these two errors."""
    if not event.contains(dialect, "handle_error", _explained):
        event.listen(dialect, "handle_error", _explained)


def _explained(context: Any) -> AsyncTaskError | None:
    """The error to raise instead, at once: work that is repeated after errors of the database must not repeat this."""
    # The dialect is also that of engines that write.
    options = {} if context.connection is None else context.connection.get_execution_options()
    within, error = options.get(READS_WITHIN), context.original_exception
    if within is None:
        return None
    if is_late(error):
        limit = f"{within:g}"
        return ReadTimeout(f"a statement took longer than {limit} s, the limit of outbox.reading(within={limit})")
    return ConfigurationError(f"outbox.reading() only reads: {error}") if _is_refused(error) else None


def is_late(error: BaseException) -> bool:
    """Whether a driver's error says that a statement took longer than it may."""
    # A reader of SQLite is busy only after it has waited for its whole time.
    return is_statement_timeout(error) or _sqlite_code(error) in (sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_BUSY)


def _is_refused(error: BaseException) -> bool:
    """Whether it would have written."""
    return sqlstate_of(error) == "25006" or error.args[:1] == (1792,) or _sqlite_code(error) == sqlite3.SQLITE_READONLY


def _sqlite_code(error: BaseException) -> int | None:
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF  # without its details


def _limit_transaction(connection: Connection) -> None:
    # Of the transaction alone: behind a pooler the next one may have another session. By functions, because not every
    # driver sends two statements at once.
    limit = _milliseconds(_within(connection))
    settings = f"set_config('transaction_read_only', 'on', true), set_config('statement_timeout', '{limit}', true)"
    connection.exec_driver_sql(f"SELECT {settings}").close()


def _within(connection: Connection) -> float:
    return float(connection.get_execution_options()[READS_WITHIN])


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _limit_statement(
    connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
) -> tuple[str, Any]:
    in_front = is_mariadb(connection.dialect)
    return limited(statement, _milliseconds(_within(connection)), in_front=in_front), parameters


def limited(statement: str, milliseconds: int, *, in_front: bool) -> str:
    """A statement that the server ends after this time: MariaDB (`in_front`); MySQL, if it is a SELECT.

    Raises ConfigurationError for a statement that may write: one that changes tables would commit the transaction that
    only reads, and be carried out.
    """
    first = _FIRST_WORD.match(statement)
    word = first[1].upper() if first else ""
    if word in _OF_TRANSACTIONS:
        return statement
    if word not in _READING:
        raise ConfigurationError(f"outbox.reading() only reads, and {word or 'this statement'} may write")
    if in_front:
        return f"SET STATEMENT max_statement_time={milliseconds / 1000} FOR {statement}"
    at = _after_select(statement)
    return statement if at is None else f"{statement[:at]} /*+ MAX_EXECUTION_TIME({milliseconds}) */{statement[at:]}"


_FIRST_WORD = re.compile(r"(?:\s|\(|/\*.*?\*/|(?:#|--\s)[^\n]*)*([A-Za-z]+)", re.DOTALL)
_OF_TRANSACTIONS = frozenset({"SET", "START", "SAVEPOINT", "RELEASE", "ROLLBACK"})
_READING = frozenset({"SELECT", "WITH", "SHOW", "EXPLAIN", "DESCRIBE", "DESC", "VALUES", "TABLE", "DO"})
_TOKENS = re.compile(
    r"""'(?:[^'\\]|\\.)*' | "(?:[^"\\]|\\.)*" | `[^`]*` | /\*.*?\*/ | (?:\#|--\s)[^\n]* | [()] | \b\w+\b""",
    re.DOTALL | re.VERBOSE,
)


def _after_select(statement: str) -> int | None:
    """Where the hint of the whole statement stands: after the first SELECT that is in no parentheses, as the tables of
    WITH are; without one, after the first of a union in parentheses. None if there is none."""
    depth, in_parentheses = 0, None
    for token in _TOKENS.finditer(statement):
        depth += {"(": 1, ")": -1}.get(token[0], 0)
        if token[0].upper() == "SELECT":
            if depth == 0:
                return token.end()
            in_parentheses = in_parentheses or token.end()
    return in_parentheses


def _limit_sqlite(engine: Engine, within: float) -> None:
    until = 0.0

    def is_over() -> bool:
        return time.monotonic() > until

    def begin(connection: Connection) -> None:
        # Nothing is undone: the connection is closed with the lane of the verb.
        connection.exec_driver_sql("PRAGMA query_only = ON")
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {_milliseconds(within)}").close()
        driver: Any = connection.connection.dbapi_connection
        if connection.dialect.is_async:
            driver.run_async(lambda inner: inner.set_progress_handler(is_over, STEPS))
        else:
            driver.set_progress_handler(is_over, STEPS)

    def wind_up(*_: Any) -> None:
        nonlocal until
        until = time.monotonic() + within

    event.listen(engine, "begin", begin)
    event.listen(engine, "before_cursor_execute", wind_up)
