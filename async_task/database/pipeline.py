"""Pipelines: a statement, its BEGIN and its COMMIT in one round trip instead of three, with psycopg. On an AsyncEngine
this holds for what psycopg has prepared; else its statements are executed one by one.

They bypass SQLAlchemy, which waits for each answer; so they are used only where `pipelines` allows it.
"""

import contextlib
import logging
from collections.abc import Callable, Generator, Mapping
from functools import cache, lru_cache
from types import ModuleType
from typing import Any, NamedTuple

from sqlalchemy import Connection, Dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

from async_task.database.dialects import has_commit_listeners, pipelines
from async_task.database.driver_errors import is_read_only, is_transient, note_fault


class Answer(NamedTuple):
    """The rows of a statement, and the number of rows that it returned or changed."""

    rows: list[Any]
    number: int


class Step(NamedTuple):
    """A statement whose compiled text is always the same, or SQL text without parameters."""

    statement: Any
    values: Mapping[str, Any] = {}


class StepFailed(Exception):
    """A step failed, and those after it were not executed. `number`: which, from 0. `error`: what SQLAlchemy would
    raise. If that says that the connection was lost, nobody knows what was executed."""

    def __init__(self, number: int, error: Exception) -> None:
        super().__init__(f"step {number} failed: {type(error).__name__}")
        self.number = number
        self.error = error


COMMIT = Step("COMMIT")
COMMIT_AND_BEGIN = Step("COMMIT AND CHAIN")
"""The next transaction has the isolation level of the one before. Only where `chains` allows it."""


def at_once(
    connection: Connection, statement: Any, values: Mapping[str, Any], *, then: str | None = None, commits: bool = False
) -> Answer:
    """Execute a statement in the transaction of `connection`, and after it the SQL text `then`, in one round trip where
    possible. The statement's compiled text must always be the same. Returns the answer of the statement.

    `commits`: the caller will do nothing more in this transaction, so the COMMIT may be sent along. The caller still
    ends the transaction. Raises what `connection.execute` raises.
    """
    following = [] if then is None else [Step(then)]
    if pipelines(connection):
        ends = [COMMIT] if commits and not has_commit_listeners(connection) else []
        return in_turn(connection, Step(statement, values), *following, *ends)[0]
    result = connection.execute(statement, values)
    answer = Answer(list(result.all()) if result.returns_rows else [], result.rowcount)
    for step in following:
        connection.exec_driver_sql(step.statement)
    return answer


class _QuietPipelines(logging.Filter):
    """psycopg logs what it meets when it leaves a pipeline whose connection was lost. Of our pipelines we raise that,
    and an outage would fill the log with it."""

    def filter(self, record: logging.LogRecord) -> bool:
        subject = record.args[0] if isinstance(record.args, tuple) and record.args else None
        return "_fetch_gen" not in getattr(subject, "__dict__", ())  # ours: see `_end_with_sync`


logging.getLogger("psycopg").addFilter(_QuietPipelines())


def in_turn(connection: Connection, *steps: Step) -> list[Answer]:
    """Execute the steps, in one round trip where possible, and return their answers. After one that fails nothing is
    executed.

    Only where `pipelines(connection)`. Raises what `connection.execute` raises.
    """
    try:
        return try_in_turn(connection, *steps)
    except StepFailed as failed:
        raise failed.error from failed.__cause__


def try_in_turn(connection: Connection, *steps: Step) -> list[Answer]:
    """The same, but raises StepFailed."""
    libpq = _libpq()
    driver: Any = connection.connection.driver_connection
    compiled = [_compiled(step.statement, connection.dialect) for step in steps]
    queries = [libpq.Query(one.text, one.parameters(step.values)) for one, step in zip(compiled, steps, strict=True)]
    results: list[Any] = []
    try:
        for result in libpq.exchanged(driver, queries) or _not_exchanged(driver, queries):
            results.append(result)
        return [
            Answer(one.read(libpq.rows_of(driver, result)) if result.nfields else [], result.command_tuples or 0)
            for one, result in zip(compiled, results, strict=True)
        ]
    except libpq.DriverError as error:
        number = len(results)
        raised = _sqlalchemy_error(connection, compiled[min(number, len(steps) - 1)].text, error, libpq.DriverError)
        raised.__cause__ = error
        raise StepFailed(number, raised) from error
    except BaseException as error:
        if not isinstance(error, Exception):  # interrupted or canceled: as SQLAlchemy does
            connection.invalidate(error)
        raise


@cache
def _libpq() -> ModuleType:
    """What uses psycopg's own functions: imported only where psycopg is the driver, and looked up once."""
    from async_task.database import exchange

    return exchange


def _not_exchanged(driver: Any, queries: list[Any]) -> Generator[Any, None, None]:
    """The results of the queries, executed in turn by psycopg. Raises psycopg's error of the first one that failed."""
    from psycopg import AsyncConnection, Error

    cursors: list[Any] = []
    failed: Error | None = None
    try:
        if isinstance(driver, AsyncConnection):
            await_only(_execute_on_loop(driver, queries, cursors))
        else:
            _pipeline(driver, queries, cursors)
    except Error as error:
        failed = error
    yield from (cursor.pgresult for cursor in cursors if cursor.pgresult is not None)
    if failed is not None:
        raise failed


def _pipeline(driver: Any, queries: list[Any], cursors: list[Any]) -> None:
    with driver.pipeline() as pipeline:
        _end_with_sync(pipeline)
        for query in queries:
            cursors.append(driver.execute(query.text, query.values))


async def _execute_on_loop(driver: Any, queries: list[Any], cursors: list[Any]) -> None:
    # Not in a pipeline: statements of other tasks on this connection would get into it.
    for query in queries:
        cursors.append(await driver.execute(query.text, query.values))


def _end_with_sync(pipeline: Any) -> None:
    """Let the pipeline end with its Sync alone. psycopg adds a Flush, which disarms the server's limit of an idle
    transaction until the next statement: a frozen process kept its row locked for ever."""
    from psycopg.generators import send

    fetch = pipeline._fetch_gen

    def fetch_without_flush(*, flush: bool) -> Generator[Any, Any, None]:
        if flush:  # what the socket did not take yet; the Sync is at its end, and makes the server answer
            yield from send(pipeline.pgconn)
        yield from fetch(flush=False)

    pipeline._fetch_gen = fetch_without_flush


class _Compiled(NamedTuple):
    """A statement as psycopg takes it: its text, the values of its literals, and the processors of parameters.

    `readers`: the result processors of its columns; empty if no column has one.
    """

    text: str
    literals: dict[str, Any]
    processors: dict[str, Callable[[Any], Any]]
    readers: tuple[Callable[[Any], Any], ...]

    def parameters(self, values: Mapping[str, Any]) -> dict[str, Any] | None:
        if not (values or self.literals):
            return None
        parameters = {**self.literals, **values}
        for name, process in self.processors.items():
            parameters[name] = process(parameters[name])
        return parameters

    def read(self, rows: list[Any]) -> list[Any]:
        if not self.readers:
            return rows
        return [[read(value) for read, value in zip(self.readers, row, strict=True)] for row in rows]


@lru_cache(maxsize=256)
def _compiled(statement: Any, dialect: Dialect) -> _Compiled:
    if isinstance(statement, str):
        return _Compiled(statement, {}, {}, ())
    compiled = statement.compile(dialect=dialect)
    found = {
        name: bind.type.dialect_impl(dialect).bind_processor(dialect)
        for name, bind in compiled.binds.items()
        if name in compiled.params
    }
    processors = {name: one for name, one in found.items() if one is not None}
    columns = getattr(statement, "exported_columns", ())  # a `text()` has none
    readers = [one.type.dialect_impl(dialect).result_processor(dialect, None) for one in columns]
    return _Compiled(
        str(compiled), dict(compiled.params), processors,
        tuple(one or _unchanged for one in readers) if any(readers) else (),
    )  # fmt: skip


def _unchanged(value: Any) -> Any:
    return value


def _sqlalchemy_error(connection: Connection, text: str, error: Any, base: type[Exception]) -> Exception:
    """The error that SQLAlchemy would raise. A lost connection is invalidated, and a transient error recorded."""
    driver: Any = connection.connection.driver_connection
    is_stuck = driver.pgconn.pipeline_status != 0  # it could not leave its pipeline when the connection was lost
    is_lost = is_stuck or connection.dialect.is_disconnect(error, driver, None) or is_read_only(error)
    if is_lost:
        _let_notice_loss(connection, driver, error)
    if is_lost or is_transient(error):
        note_fault(connection, error)
    raised: Exception = DBAPIError.instance(
        text, None, error, base, hide_parameters=True, connection_invalidated=is_lost, dialect=connection.dialect
    )
    return raised


def _let_notice_loss(connection: Connection, driver: Any, error: Any) -> None:
    """Invalidate a lost connection. SQLAlchemy does so when a statement finds it lost. Then the pool connects anew too,
    instead of handing out connections that are older than the loss. Those who listen to errors hear of it: that the
    connection is closed."""
    driver.pgconn.finish()
    with contextlib.suppress(Exception):  # a listener may raise an error of its own instead
        connection.exec_driver_sql("SELECT 1")
    connection.invalidate(error)
