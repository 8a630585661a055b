"""Cutting a connection off from its server, from another thread than the one that uses it."""

import asyncio
import contextlib
import inspect
import os
import socket
import threading
from collections.abc import Coroutine
from typing import Any

from sqlalchemy.engine import Connection

LONGEST_CLOSE = 1.0
"""Seconds for which a connection's end is waited for: it may be in the middle of a statement."""


def disconnect(connection: Connection) -> None:
    """Cut `connection` off from its server, from another thread than the one that uses it.

    On PostgreSQL (psycopg) a statement that waits for a lock is also canceled: a server that waits does not notice that
    its client is gone, and keeps its locks. Other servers notice once they have the lock. We send MySQL no KILL: behind
    a pooler the connection id may be another session's.
    """
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name == "sqlite":
        interrupt(driver)
        closing = driver.close()
        if inspect.iscoroutine(closing):  # aiosqlite has a thread of its own, and any event loop may wait for that
            closer = threading.Thread(target=_close, args=(closing,), name="async-task-close", daemon=True)
            closer.start()
            closer.join(timeout=LONGEST_CLOSE)
        return
    cancel = driver.pgconn.get_cancel() if hasattr(driver, "pgconn") else None
    end = socket.socket(fileno=os.dup(descriptor_of(driver)))
    try:
        end.shutdown(socket.SHUT_RDWR)
    finally:
        end.close()
    if cancel is not None:  # on a thread of its own, because a network that is down blocks it
        threading.Thread(target=_send_cancel, args=(cancel,), name="async-task-cancel", daemon=True).start()


def interrupt(driver: Any) -> None:
    """End the statement that a connection to SQLite executes, if any: until its end the file stays locked. aiosqlite
    goes on with the statement of a coroutine that was canceled, on its thread."""
    getattr(driver, "_conn", driver).interrupt()


def _close(closing: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(Exception):
        asyncio.run(closing)


def _send_cancel(cancel: Any) -> None:
    with contextlib.suppress(Exception):
        cancel.cancel()


def descriptor_of(driver: Any) -> int:
    """The file descriptor of a connection's socket, which each driver keeps in another place."""
    if hasattr(driver, "fileno"):  # psycopg
        return int(driver.fileno())
    if hasattr(driver, "_sock"):  # PyMySQL
        return int(driver._sock.fileno())
    transport = driver._writer.transport if hasattr(driver, "_writer") else driver._transport  # aiomysql, asyncpg
    return int(transport.get_extra_info("socket").fileno())
