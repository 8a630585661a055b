"""What goes to the server at once, with the BEGIN before it and the COMMIT after it: one way there and back instead of
three (psycopg's pipeline). Past SQLAlchemy, which waits for each; so only where nobody listens to what it does."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, Dialect
from sqlalchemy.exc import DBAPIError

from async_task.database.dialects import pipelines
from async_task.database.driver_errors import is_transient, note_fault


class Answer(NamedTuple):
    """The rows of a statement, or how many it has changed."""

    rows: list[Any]
    number: int


class Step(NamedTuple):
    """A statement whose text is always the same, or a text without parameters."""

    statement: Any
    values: Mapping[str, Any] = {}


COMMIT = Step("COMMIT")
COMMIT_AND_BEGIN = Step("COMMIT AND CHAIN")
"""The transaction that follows is like the one before it. PostgreSQL 12."""


def at_once(
    connection: Connection, statement: Any, values: Mapping[str, Any], *, then: str | None = None, commits: bool = False
) -> Answer:
    """Execute a statement, whose text is always the same, in the transaction of `connection`; and behind it the text
    `then`. `commits`: nothing but the COMMIT follows, which may go with it; whoever began the transaction ends it all
    the same. Answers for the first. Raises as `connection.execute` does."""
    following = [] if then is None else [Step(then)]
    if pipelines(connection):
        heard: Any = connection.dispatch
        ends = [COMMIT] if commits and not heard.commit else []
        return in_turn(connection, Step(statement, values), *following, *ends)[0]
    result = connection.execute(statement, values)
    answer = Answer(list(result.all()) if result.returns_rows else [], result.rowcount)
    for step in following:
        connection.exec_driver_sql(step.statement)
    return answer


def in_turn(connection: Connection, *steps: Step) -> list[Answer]:
    """Execute one behind the other, without waiting for any; none behind one that fails. Only where `connection`
    `pipelines`. Raises as `connection.execute` does."""
    from psycopg import Error

    driver: Any = connection.connection.driver_connection
    written = [_written_out(step.statement, connection.dialect) for step in steps]
    try:
        with driver.pipeline():
            cursors = [
                driver.execute(one.text, one.parameters(step.values)) for one, step in zip(written, steps, strict=True)
            ]
        return [one.answer(cursor) for one, cursor in zip(written, cursors, strict=True)]
    except Error as error:
        raise _told(connection, written[0].text, error, Error) from error


class _Written(NamedTuple):
    """A statement as psycopg takes it: its text, the values that it brings itself, and what makes values fit.
    `readers`: of the columns of its rows; none, as long as a model has no types of its own."""

    text: str
    own: dict[str, Any]
    processors: dict[str, Callable[[Any], Any]]
    readers: tuple[Callable[[Any], Any], ...]

    def parameters(self, values: Mapping[str, Any]) -> dict[str, Any] | None:
        if not (values or self.own):
            return None
        found = {**self.own, **values}
        for name, process in self.processors.items():
            found[name] = process(found[name])
        return found

    def answer(self, cursor: Any) -> Answer:
        return Answer(self._read(cursor.fetchall()) if cursor.description else [], cursor.rowcount)

    def _read(self, rows: list[Any]) -> list[Any]:
        if not self.readers:
            return rows
        return [[read(value) for read, value in zip(self.readers, row, strict=True)] for row in rows]


@lru_cache(maxsize=256)
def _written_out(statement: Any, dialect: Dialect) -> _Written:
    if isinstance(statement, str):
        return _Written(statement, {}, {}, ())
    compiled = statement.compile(dialect=dialect)
    made = {
        name: bind.type.dialect_impl(dialect).bind_processor(dialect)
        for name, bind in compiled.binds.items()
        if name in compiled.params
    }
    processors = {name: one for name, one in made.items() if one is not None}
    columns = getattr(statement, "exported_columns", ())  # a text has none
    readers = [one.type.dialect_impl(dialect).result_processor(dialect, None) for one in columns]
    return _Written(
        str(compiled), dict(compiled.params), processors,
        tuple(one or _as_it_is for one in readers) if any(readers) else (),
    )  # fmt: skip


def _as_it_is(value: Any) -> Any:
    return value


def _told(connection: Connection, text: str, error: Any, base: type[Exception]) -> Exception:
    """The error as SQLAlchemy tells it. A connection that is lost is marked so, and what has met a fault noted."""
    driver: Any = connection.connection.driver_connection
    is_stuck = driver.pgconn.pipeline_status != 0  # it could not leave its pipeline, as it was being lost
    is_lost = is_stuck or connection.dialect.is_disconnect(error, driver, None)
    if is_lost or is_transient(error):
        note_fault(connection, error)
    if is_lost:
        connection.invalidate(error)
    told: Exception = DBAPIError.instance(
        text, None, error, base, hide_parameters=True, connection_invalidated=is_lost, dialect=connection.dialect
    )
    return told
