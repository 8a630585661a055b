"""Pipelines: a statement, its BEGIN and its COMMIT in one round trip instead of three, with psycopg.

They bypass SQLAlchemy, which waits for each answer; so they are used only where `pipelines` allows it.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, Dialect
from sqlalchemy.exc import DBAPIError

from async_task.database.dialects import pipelines
from async_task.database.driver_errors import is_transient, note_fault


class Answer(NamedTuple):
    """The rows of a statement, and the number of rows that it returned or changed."""

    rows: list[Any]
    number: int


class Step(NamedTuple):
    """A statement whose compiled text is always the same, or SQL text without parameters."""

    statement: Any
    values: Mapping[str, Any] = {}


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
        listeners: Any = connection.dispatch
        ends = [COMMIT] if commits and not listeners.commit else []
        return in_turn(connection, Step(statement, values), *following, *ends)[0]
    result = connection.execute(statement, values)
    answer = Answer(list(result.all()) if result.returns_rows else [], result.rowcount)
    for step in following:
        connection.exec_driver_sql(step.statement)
    return answer


def in_turn(connection: Connection, *steps: Step) -> list[Answer]:
    """Execute the steps in one round trip, and return their answers; the steps after one that fails are not executed.

    Only where `pipelines(connection)`. Raises what `connection.execute` raises.
    """
    from psycopg import Error

    driver: Any = connection.connection.driver_connection
    compiled = [_compiled(step.statement, connection.dialect) for step in steps]
    try:
        with driver.pipeline():
            cursors = [
                driver.execute(one.text, one.parameters(step.values)) for one, step in zip(compiled, steps, strict=True)
            ]
        return [one.answer(cursor) for one, cursor in zip(compiled, cursors, strict=True)]
    except Error as error:
        raise _sqlalchemy_error(connection, compiled[0].text, error, Error) from error


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

    def answer(self, cursor: Any) -> Answer:
        return Answer(self._read(cursor.fetchall()) if cursor.description else [], cursor.rowcount)

    def _read(self, rows: list[Any]) -> list[Any]:
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
    is_lost = is_stuck or connection.dialect.is_disconnect(error, driver, None)
    if is_lost or is_transient(error):
        note_fault(connection, error)
    if is_lost:
        connection.invalidate(error)
    raised: Exception = DBAPIError.instance(
        text, None, error, base, hide_parameters=True, connection_invalidated=is_lost, dialect=connection.dialect
    )
    return raised
