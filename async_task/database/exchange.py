"""An exchange with a PostgreSQL server: several statements in one round trip, by libpq's own functions.

psycopg's pipeline does the same, but waits for the socket after each statement: six waits for three statements, and
three times the processor time. It stays responsible for preparing: an exchange executes what psycopg has prepared on
this connection, and where that is not everything, nothing is exchanged, and psycopg executes it. So all that psycopg
decides holds here too: when a statement is prepared or deallocated, and that behind a pooler none is.

The connection is synchronous, or that of an event loop: then this code runs in a greenlet of the loop. Imported only
where psycopg is the driver.
"""

import contextlib
import re
from collections.abc import Generator, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from psycopg import AsyncConnection, Error, IsolationLevel
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.generators import fetch_many, send
from psycopg.pq import ExecStatus, TransactionStatus
from sqlalchemy.util import await_only

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
    """Made by `exchange_of`, under the lock of the connection."""

    def __init__(self, driver: Any, messages: list[_Message], begin: bytes | None) -> None:
        self._driver = driver
        self._messages = messages
        self._begin = begin

    def execute(self) -> list[Any]:
        """Execute the queries in turn, and return the result of each, first that of a BEGIN. After one that failed
        nothing is executed."""
        with self._sent():
            results: list[Any] = self._driver.wait(self._answers())
        return results

    async def execute_on_loop(self) -> list[Any]:
        """The same for an AsyncConnection."""
        with self._sent():
            results: list[Any] = await self._driver.wait(self._answers())
        return results

    @contextlib.contextmanager
    def _sent(self) -> Iterator[None]:
        """Send the queries; the block takes their answers."""
        pgconn = self._driver.pgconn
        pgconn.enter_pipeline_mode()
        try:
            if self._begin is not None:
                pgconn.send_query_params(self._begin, None)
            for message in self._messages:
                message.send(pgconn)
            pgconn.pipeline_sync()
            yield
            pgconn.exit_pipeline_mode()
        except BaseException:
            pgconn.finish()  # nobody knows what is still to come on this connection
            raise

    def _answers(self) -> Generator[Any, Any, list[Any]]:
        return _answers(self._driver.pgconn, len(self._messages) + (self._begin is not None))


def exchanged(driver: Any, queries: Sequence[Query]) -> Generator[Any, None, None] | None:
    """The results of these queries, executed in turn in one exchange. None, and nothing is executed, if there is no
    exchange of them. The generator raises psycopg's error of the first one that failed."""
    if isinstance(driver, AsyncConnection):
        results = await_only(_execute_on_loop(driver, queries))
    else:
        results = _execute(driver, queries)
    return None if results is None else _checked(driver, results, len(queries))


def _execute(driver: Any, queries: Sequence[Query]) -> list[Any] | None:
    with driver.lock:
        exchange = exchange_of(driver, queries)
        return None if exchange is None else exchange.execute()


async def _execute_on_loop(driver: Any, queries: Sequence[Query]) -> list[Any] | None:
    async with driver.lock:  # another task may use the connection, and change what the exchange is made of
        exchange = exchange_of(driver, queries)
        return None if exchange is None else await exchange.execute_on_loop()


def _checked(driver: Any, results: Sequence[Any], number: int) -> Generator[Any, None, None]:
    for place, result in enumerate(results, number - len(results)):  # below 0: of the BEGIN
        if result.status not in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
            raise error_from_result(result, encoding=driver.info.encoding)
        if place >= 0:
            yield result


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
