"""How a transaction begins on MySQL, MariaDB and SQLite, by a statement of ours: to write, or only to read."""

import contextlib
from typing import Any

from sqlalchemy import Connection

READS_WITHIN = "async_task_reads_within"
"""The execution option of an engine whose transactions only read: the seconds that a statement may take."""
LOCK_WAIT_MS = 10_000


def begin_mysql(connection: Connection) -> None:
    """Begin a transaction, READ COMMITTED unless the connection has another level."""
    if _is_autocommit(connection):
        return
    options = connection.get_execution_options()
    level = options.get("isolation_level", "READ COMMITTED")
    connection.exec_driver_sql(f"SET TRANSACTION ISOLATION LEVEL {level}")  # for the next one
    # Also if the user's engine is in AUTOCOMMIT.
    connection.exec_driver_sql("START TRANSACTION READ ONLY" if READS_WITHIN in options else "START TRANSACTION")


def open_sqlite(connection: Any, record: Any) -> None:
    """Prepare a new connection of the driver."""
    # The driver's own BEGIN is deferred: the transaction first reads, and then may fail to become a writer.
    # `synchronous` stays FULL: NORMAL loses committed outcomes when the power fails.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout = 500")
    with contextlib.suppress(Exception):  # if somebody reads just now, a later connection sets it
        cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute(f"PRAGMA busy_timeout = {LOCK_WAIT_MS}")
    cursor.close()


def begin_sqlite(connection: Connection) -> None:
    """Begin a transaction as a writer, or as a reader, who waits for no writer and holds none up."""
    if _is_autocommit(connection):
        return
    driver: Any = connection.connection.driver_connection
    if driver.in_transaction:  # by a listener of the user's engine, as SQLAlchemy's page on SQLite shows it
        connection.exec_driver_sql("ROLLBACK")
    # Lanes wait for each other in SQLite (busy_timeout): with a lock of ours attempts that write were slower (0.73x).
    connection.exec_driver_sql("BEGIN" if READS_WITHIN in connection.get_execution_options() else "BEGIN IMMEDIATE")


def _is_autocommit(connection: Connection) -> bool:
    """Whether each of its statements is a transaction of its own."""
    return connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT"
