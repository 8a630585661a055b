"""The private connections of a process that performs attempts. On none of them anybody waits for ever.

1. The kernel ends a connection whose peer has gone: keepalives, and TCP_USER_TIMEOUT for what was sent.
2. The server ends what has lost its client, and a transaction that idles (PostgreSQL).
3. The driver ends a wait for a server or proxy that keeps silent: psycopg, sync and async, and PyMySQL.

Behind a pooler in transaction mode the server's limits are not set: they would hold for other clients too.
"""

import asyncio
import contextlib
import inspect
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Generator
from typing import Any

from sqlalchemy import Connection, Pool, event
from sqlalchemy.engine import Dialect

from async_task.database.dialects import locks_rows
from async_task.database.disconnection import descriptor_of, interrupt

CONNECTING = 3
"""Seconds in which a connection must be made: a network that is back is noticed by the next attempt."""
WAITING = 10.0
"""Seconds for which a statement of ours may keep the server silent."""
WAITING_FOR_MYSQL = 55.0
"""The same for MySQL and MariaDB, which let a statement wait 50 s for a lock, and notice only then that we are gone."""
UNACKNOWLEDGED = 5_000
"""Milliseconds for which what was sent may remain unacknowledged."""
SERVER_LIMITS = {
    "idle_in_transaction_session_timeout": "15s",
    "statement_timeout": "60s",
    "client_connection_check_interval": "500ms",
}
"""PostgreSQL's, for each transaction that sets none of its own; an own setting of the user's role or engine stays."""


class _Connecting(threading.local):
    """Whether this thread makes a private connection now."""

    is_private = False


_connecting = _Connecting()


def guard(pool: Pool, dialect: Dialect) -> None:
    """Let all connections of this private pool have the limits above."""
    if not locks_rows(dialect):  # SQLite: a file, and busy_timeout
        event.listen(pool, "invalidate", _on_invalidate)
        return
    if not event.contains(dialect, "do_connect", _on_connect):
        event.listen(dialect, "do_connect", _on_connect)
    inner: Any = pool
    connect = inner._creator

    def connect_privately(*given: Any) -> Any:
        _connecting.is_private = True
        try:
            return connect(*given)
        except Exception as error:
            if not _is_unknown(error):
                raise
            raise _as_driver_error(dialect, error) from error
        finally:
            _connecting.is_private = False

    inner._creator = connect_privately
    event.listen(pool, "connect", _on_connected)


def _is_unknown(error: Exception) -> bool:
    """Whether SQLAlchemy lets this error of a connection that could not be made through as it is: those of asyncpg, and
    of the system below it. Then nobody would wait for the database to be back."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] == "asyncpg"


def _as_driver_error(dialect: Dialect, error: Exception) -> Exception:
    """The same as an error of the dialect's driver, from which SQLAlchemy makes its own."""
    made: Any = dialect.loaded_dbapi.OperationalError(str(error) or type(error).__name__)
    made.sqlstate = made.pgcode = getattr(error, "sqlstate", None)
    known: Exception = made
    return known


def limit_waits(connection: Connection, seconds: float | None = None) -> None:
    """From now on, a statement may keep the server silent for `seconds`, if that is longer than ours may: a statement
    of a call may take as long as the call. None: as long as ours may. Only on private connections."""
    driver: Any = connection.connection.driver_connection
    wait = getattr(driver, "wait", None)
    if isinstance(wait, _BoundedWait):
        wait.seconds = max(WAITING, seconds or 0)
    elif getattr(driver, "_read_timeout", None) is not None:
        driver._read_timeout = max(WAITING_FOR_MYSQL, seconds or 0)


def _on_connect(dialect: Dialect, record: Any, given: Any, options: dict[str, Any]) -> None:
    # The dialect is also that of the user's engine, whose connections are theirs.
    if not _connecting.is_private:
        return
    _connecting.is_private = False
    defaults: dict[str, Any] = {}
    if dialect.driver in ("psycopg", "psycopg_async"):
        defaults = {"connect_timeout": CONNECTING, "fallback_application_name": "async-task"}
    elif dialect.driver == "asyncpg":
        defaults = {"timeout": CONNECTING}
    elif dialect.driver == "pymysql":
        defaults = {"connect_timeout": CONNECTING, "read_timeout": WAITING_FOR_MYSQL, "write_timeout": WAITING}
    elif dialect.driver == "aiomysql":
        defaults = {"connect_timeout": CONNECTING}
    for name, value in defaults.items():
        options.setdefault(name, value)


def _on_connected(connection: Any, record: Any) -> None:
    driver = getattr(connection, "driver_connection", connection)
    with contextlib.suppress(Exception):  # a driver that shows no socket works without
        _watch_peer(descriptor_of(driver))
    if hasattr(driver, "pgconn"):
        driver.wait = _BoundedWait(driver)
        _limit_server(connection, driver.pgconn.backend_pid, driver.pgconn.server_version // 10_000)
    elif hasattr(driver, "get_server_pid"):  # asyncpg
        _limit_server(connection, driver.get_server_pid(), driver.get_server_version().major)


_rolling_back: set[asyncio.Task[None]] = set()


def _on_invalidate(connection: Any, record: Any, error: BaseException | None) -> None:
    """Of SQLite: end the statement and the transaction, which keeps the file locked. Closing alone does not, as long as
    anything refers to a cursor, like the traceback of the error that is to be recorded."""
    driver = getattr(connection, "driver_connection", connection)
    with contextlib.suppress(Exception):
        interrupt(driver)
        if inspect.iscoroutinefunction(driver.rollback):
            rolling_back = asyncio.get_running_loop().create_task(_roll_back(driver))
            _rolling_back.add(rolling_back)
            rolling_back.add_done_callback(_rolling_back.discard)


async def _roll_back(driver: Any) -> None:
    with contextlib.suppress(Exception):
        await driver.rollback()


def _watch_peer(descriptor: int) -> None:
    end = socket.socket(fileno=os.dup(descriptor))
    try:
        if end.family in (socket.AF_INET, socket.AF_INET6):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            wanted = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": UNACKNOWLEDGED}
            for name, value in wanted.items():
                if hasattr(socket, name):
                    end.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    finally:
        end.close()


def _limit_server(connection: Any, pid: int, version: int) -> None:
    """Set the limits for the session, if it is ours alone: a pooler tells its clients another process id."""
    wanted = {name: value for name, value in SERVER_LIMITS.items() if version >= 14 or not name.startswith("client_")}
    settings = ", ".join(
        f"CASE current_setting('{name}') WHEN '0' THEN set_config('{name}', '{value}', false) END"
        for name, value in wanted.items()
    )
    cursor = connection.cursor()
    try:
        cursor.execute(f"SELECT {settings} WHERE pg_backend_pid() = {int(pid)}")
        connection.commit()
    finally:
        cursor.close()


class _BoundedWait:
    """psycopg's `Connection.wait`, which ends the connection after `seconds` without an answer.

    psycopg lets the generator run at each interval of its own (0.1 s), so that this needs no thread.
    """

    def __init__(self, driver: Any) -> None:
        self._driver = weakref.ref(driver)
        self._wait: Callable[..., Any] = type(driver).wait
        self.seconds = WAITING

    def __call__(self, generator: Generator[Any, Any, Any], *given: Any, **more: Any) -> Any:
        driver = self._driver()
        return self._wait(driver, self._bounded(generator, driver), *given, **more)

    def _bounded(self, generator: Generator[Any, Any, Any], driver: Any) -> Generator[Any, Any, Any]:
        until = None
        try:
            wanted = next(generator)
            while True:
                ready = yield wanted
                now = 0.0 if ready else time.monotonic()
                until = None if ready else until or now + self.seconds
                if until is not None and now >= until:
                    raise _silent(driver, self.seconds)
                wanted = generator.send(ready)
        except StopIteration as end:
            return end.value


def _silent(driver: Any, seconds: float) -> Exception:
    from psycopg import OperationalError

    driver.pgconn.finish()
    return OperationalError(f"the server has not answered for {seconds:g} s: the connection is closed")
