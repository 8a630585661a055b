"""An exchange with a PostgreSQL server: several statements in one round trip, by libpq's own functions.

psycopg's pipeline does the same, but waits for the socket after each statement: six waits for three statements, and
three times the processor time. It stays responsible for preparing: an exchange executes what psycopg has prepared on
this connection, and where that is not everything, nothing is exchanged and psycopg's pipeline is used. So all that
psycopg decides holds here too: when a statement is prepared or deallocated, and that behind a pooler none is.

Imported only where psycopg is the driver.
"""

import re
from collections.abc import Generator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from psycopg import Error, IsolationLevel
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.generators import fetch_many, send
from psycopg.pq import ExecStatus, TransactionStatus

DriverError = Error
"""The base class of psycopg's errors."""
Key = tuple[bytes, tuple[int, ...]]
"""By which psycopg knows a prepared statement: its text and the types of its parameters."""


class Query(NamedTuple):
    """A statement to execute. `values`: its parameters by name; None if it is SQL text, which needs no preparing."""

    text: str
    values: dict[str, Any] | None


class _Message(NamedTuple):
    """What is sent of a query. `name`: of the prepared statement, empty if it has none."""

    text: bytes
    name: bytes
    parameters: Sequence[Any] | None
    formats: Sequence[Any] | None

    def send(self, pgconn: Any) -> None:
        if self.name:
            pgconn.send_query_prepared(self.name, self.parameters, self.formats)
        else:
            pgconn.send_query_params(self.text, None)


class Exchange:
    """Made by `exchange_of`."""

    def __init__(self, driver: Any, messages: list[_Message], begin: bytes | None) -> None:
        self._driver = driver
        self._messages = messages
        self._begin = begin

    def results(self) -> Generator[Any, None, None]:
        """Execute the queries in turn, and yield the result of each. Raises psycopg's error of the first one that
        failed; those after it were not executed."""
        first, *others = self._execute()
        results = [first, *others] if self._begin is None else others
        if self._begin is not None and first.status != ExecStatus.COMMAND_OK:
            raise error_from_result(first, encoding=self._driver.info.encoding)
        for result in results:
            if result.status not in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
                raise error_from_result(result, encoding=self._driver.info.encoding)
            yield result

    def _execute(self) -> list[Any]:
        pgconn = self._driver.pgconn
        with self._driver.lock:
            pgconn.enter_pipeline_mode()
            try:
                if self._begin is not None:
                    pgconn.send_query_params(self._begin, None)
                for message in self._messages:
                    message.send(pgconn)
                pgconn.pipeline_sync()
                number = len(self._messages) + (self._begin is not None)
                results: list[Any] = self._driver.wait(_answers(pgconn, number))
                pgconn.exit_pipeline_mode()
            except BaseException:
                pgconn.finish()  # nobody knows what is still to come on this connection
                raise
        return results


def exchange_of(driver: Any, queries: Sequence[Query]) -> Exchange | None:
    """The exchange of these queries on a connection of psycopg. None if psycopg has not prepared all of them there, or
    if only psycopg knows how the transaction is to begin."""
    names, status = _prepared_names(driver), driver.pgconn.transaction_status
    is_idle = status == TransactionStatus.IDLE
    if not names or not (is_idle or status == TransactionStatus.INTRANS):
        return None
    if driver.autocommit or driver.read_only is not None or driver.deferrable is not None:
        return None
    transformer, messages = Transformer.from_context(driver), []
    for query in queries:
        message = _message(transformer, names, query)
        if message is None:
            return None
        messages.append(message)
    return Exchange(driver, messages, _begin(driver.isolation_level) if is_idle else None)


def rows_of(driver: Any, result: Any) -> list[Any]:
    """The rows of a result, as psycopg returns them."""
    transformer = Transformer.from_context(driver)
    transformer.set_pgresult(result)
    return transformer.load_rows(0, result.ntuples, tuple)


def _prepared_names(driver: Any) -> dict[Key, bytes]:
    """What psycopg has prepared on this connection: the one thing that it does not tell otherwise."""
    return getattr(getattr(driver, "_prepared", None), "_names", {})


def _message(transformer: Any, names: dict[Key, bytes], query: Query) -> _Message | None:
    if query.values is None:
        text = query.text.encode()
        return _Message(text, names.get((text, ()), b""), None, None)
    text, order = _numbered(query.text)
    parameters = transformer.dump_sequence([query.values[name] for name in order], [PyFormat.AUTO] * len(order))
    name = names.get((text, transformer.types or ()))
    return None if name is None else _Message(text, name, parameters, transformer.formats)


@lru_cache(maxsize=256)
def _numbered(text: str) -> tuple[bytes, tuple[str, ...]]:
    """The text as psycopg sends it, with `$1` for the first parameter, and the names of its parameters in order."""
    order: list[str] = []

    def number(found: re.Match[str]) -> str:
        name = found[1]
        if name is None:
            return "%"
        if name not in order:
            order.append(name)
        return f"${order.index(name) + 1}"

    return _PARAMETER.sub(number, text).encode(), tuple(order)


_PARAMETER = re.compile(r"%\((\w+)\)s|%%")


@lru_cache(maxsize=8)
def _begin(isolation: Any) -> bytes:
    if isolation is None:
        return b"BEGIN"
    return b"BEGIN ISOLATION LEVEL " + IsolationLevel(isolation).name.replace("_", " ").encode()


def _answers(pgconn: Any, number: int) -> Generator[Any, Any, list[Any]]:
    """Send what is waiting, and return the results of so many queries, and take the answer to the Sync."""
    yield from send(pgconn)
    results = []
    for _ in range(number):
        (result,) = yield from fetch_many(pgconn)
        results.append(result)
    yield from fetch_many(pgconn)
    return results
