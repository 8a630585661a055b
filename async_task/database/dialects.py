"""What PostgreSQL, MySQL/MariaDB and SQLite do differently. All other SQL is the same.

Each capability is a function with a name. Other packages ask these, and never for the name of a dialect or driver.
"""

import asyncio
import contextlib
import functools
import inspect
import os
import socket
import threading
from collections.abc import Collection, Coroutine
from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Float,
    Select,
    Sequence,
    Table,
    Update,
    bindparam,
    cast,
    column,
    delete,
    func,
    literal,
    literal_column,
    select,
    table,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

MYSQL = ("mysql", "mariadb")
"""The names of both dialects, for `@compiles` and `with_variant`."""

LONGEST_CLOSE = 1.0
"""Seconds for which a connection's end is waited for: it may be in the middle of a statement."""
S = TypeVar("S", Select[Any], Update)


def sequence_of(attempts: Table) -> Sequence:
    """PostgreSQL's sequence for the `seq` of an attempts table; it is in the table's schema."""
    return Sequence(f"sq_{attempts.name}_order", schema=attempts.schema)


class numbered(FunctionElement[int]):
    """The `seq` of a row that is inserted now with this order key: greater than that of every committed row of the key.

    Transactions do not wait for each other here, so rows of transactions that are open at the same time have no order.
    """

    name = "numbered"
    inherit_cache = True
    type = BigInteger()

    def __init__(self, attempts: Table, key: str) -> None:
        line = attempts.alias("line")
        of_key = (line.c.status == literal_column("'pending'"), line.c.order_key == literal(key, line.c.order_key.type))
        last = select(func.coalesce(func.max(line.c.seq), 0)).where(*of_key).correlate(None).scalar_subquery()
        super().__init__(sequence_of(attempts).next_value(), last)


@compiles(numbered)
@compiles(numbered, "postgresql")
def _numbered(element: numbered, compiler: SQLCompiler, **kw: Any) -> str:
    following, _ = element.clauses
    return compiler.process(following, **kw)


@compiles(numbered, "mysql")
@compiles(numbered, "mariadb")
def _mysql_number(element: numbered, compiler: SQLCompiler, **kw: Any) -> str:
    # It starts again at a higher number when the server restarts. We cut off the server's id, which would make the
    # number too large for our column.
    return compiler.process(func.uuid_short().op("&")(literal_column(str(2**56 - 1))), **kw)


@compiles(numbered, "sqlite")
def _sqlite_number(element: numbered, compiler: SQLCompiler, **kw: Any) -> str:
    # There is one writer at a time. The clock (in milliseconds) keeps a row that is retried later behind newer ones.
    _, last = element.clauses
    clock = cast(func.julianday(literal_column("'now'"), type_=Float()) * literal_column("86400000"), BigInteger)
    return compiler.process(func.max(last + literal_column("1"), clock), **kw)


def take_numbers(connection: Connection, attempts: Table, count: int) -> list[int] | None:
    """The `seq` of `count` rows that are inserted now; None where each INSERT must compute its own (`numbered`)."""
    if connection.dialect.name != "postgresql":
        return None
    following = select(sequence_of(attempts).next_value()).select_from(func.generate_series(1, count))
    return list(connection.scalars(following))


def locks_rows(dialect: Dialect) -> bool:
    """Whether a single row can be locked. SQLite locks the whole database, so every call is leased there."""
    return dialect.name != "sqlite"


def reads_snapshots(dialect: Dialect) -> bool:
    """Whether a plain SELECT sees rows as they were when the caller's transaction first read, not as they are committed
    now: MySQL and MariaDB at their default isolation level. There only a locking read sees the current row."""
    return dialect.name in MYSQL


def skips_conflicts(dialect: Dialect) -> bool:
    """Whether an INSERT can skip a row that exists, without a lock on that row: ON CONFLICT DO NOTHING in PostgreSQL
    and SQLite. ON DUPLICATE KEY UPDATE in MySQL and MariaDB waits for whoever has locked it."""
    return dialect.name not in MYSQL


def insert_into(dialect: Dialect, attempts: Table) -> Any:
    """This database's own INSERT, with its clauses about rows that exist."""
    kinds: dict[str, Any] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}
    return kinds.get(dialect.name, mysql.insert)(attempts)


def probes_laterally(dialect: Dialect) -> bool:
    """Whether one statement can probe each priority, and lock, update and return the rows that it finds: PostgreSQL."""
    return dialect.name == "postgresql"


def locks_neighbours(dialect: Dialect) -> bool:
    """Whether a statement that locks rows also locks their neighbours for a moment: MySQL and MariaDB. There SKIP
    LOCKED may find no row although an unlocked one exists."""
    return dialect.name in MYSQL


def takes_arrays(dialect: Dialect) -> bool:
    """Whether one parameter can hold an array, however long: PostgreSQL."""
    return dialect.name == "postgresql"


def bounds_transactions(dialect: Dialect) -> bool:
    """Whether the server can end a transaction that lasts too long, however busy it is: PostgreSQL 17 and newer."""
    return dialect.name == "postgresql" and (dialect.server_version_info or ()) >= (17,)


def counts_locked_rows(dialect: Dialect) -> bool:
    """Whether one statement can lock rows, count them, and limit how long its transaction may last: PostgreSQL."""
    return dialect.name == "postgresql"


def walks_index_names(dialect: Dialect) -> bool:
    """Whether a recursive statement finds each next name of an index by one look into it. Not MySQL and MariaDB, which
    find their way in an index by constants only: there it reads all rows."""
    return dialect.name not in MYSQL


def has_partial_indexes(dialect: Dialect) -> bool:
    """Whether an index can hold a part of the rows only: not on MySQL and MariaDB."""
    return dialect.name not in MYSQL


def by_primary_key(table: Table, statement: S) -> S:
    """The statement, told on MySQL and MariaDB to find its rows by the primary key: in a small table they would walk
    over all rows, and wait for each that is locked."""
    for name in MYSQL:
        hinted: Any = statement.with_hint(text="FORCE INDEX (PRIMARY)", selectable=table, dialect_name=name)
        statement = hinted
    return statement


def delete_by_key(connection: Connection, table: Table, values: Collection[Any]) -> None:
    """Delete the rows whose primary key, of one column, is one of `values`. On MySQL and MariaDB each by itself: for a
    list they may walk over all rows, and wait for each that is locked; and a DELETE takes no hint."""
    if not values:
        return
    key: ColumnElement[Any] = next(iter(table.primary_key))
    if connection.dialect.name in MYSQL:
        one = delete(table).where(key == bindparam("its_key"))
        connection.execute(one, [{"its_key": value} for value in values])
    else:
        connection.execute(delete(table).where(key.in_(values)))


def copies_rows(dialect: Dialect) -> bool:
    """Whether rows can be written with COPY: PostgreSQL through psycopg 3."""
    return dialect.name == "postgresql" and uses_libpq(dialect)


def pipelines(connection: Connection) -> bool:
    """Whether statements can be sent in psycopg's pipeline, without waiting for each answer: PostgreSQL through
    psycopg 3 on a synchronous engine.

    The pipeline bypasses SQLAlchemy. So it is not used where the user listens to SQLAlchemy's statements, or lets
    SQLAlchemy translate schemas.
    """
    dialect = connection.dialect
    if dialect.name != "postgresql" or dialect.driver != "psycopg" or dialect.is_async:
        return False
    heard: Any = connection.dispatch  # written out, because this is asked twice for each call
    if heard.before_execute or heard.after_execute or heard.before_cursor_execute or heard.after_cursor_execute:
        return False
    return _has_pipelines() and not connection.get_execution_options().get("schema_translate_map")


@functools.cache
def _has_pipelines() -> bool:
    from psycopg import Pipeline

    return Pipeline.is_supported()


def chains(connection: Connection) -> bool:
    """Whether a pipeline can also hold a COMMIT and the statements of the next transaction: PostgreSQL 12, and nobody
    listens to begin or commit, where a user may set something for each transaction."""
    version: Any = connection.dialect.server_version_info
    listeners: Any = connection.dispatch
    return pipelines(connection) and version >= (12,) and not (listeners.begin or listeners.commit)


def has_commit_listeners(connection: Connection) -> bool:
    """Whether somebody listens to the commits of this connection, and may write in the transaction just before."""
    listeners: Any = connection.dispatch
    return any(one not in CALLED_AFTER_COMMIT for one in listeners.commit)


CALLED_AFTER_COMMIT: set[Any] = set()
"""Our own listeners to the commit of a connection, which write nothing: they may also be called after it."""


def notifies(dialect: Dialect) -> bool:
    """Whether a transaction can notify other processes when it commits: PostgreSQL's NOTIFY."""
    return dialect.name == "postgresql"


def receives_notifications(dialect: Dialect) -> bool:
    """Whether we can LISTEN through this driver: PostgreSQL through psycopg 3 or asyncpg."""
    return notifies(dialect) and (uses_libpq(dialect) or dialect.driver == "asyncpg")


def uses_libpq(dialect: Dialect) -> bool:
    """Whether the driver is built on libpq, and its connection has a `pgconn`: psycopg 3, sync or async."""
    return dialect.driver in ("psycopg", "psycopg_async")


def is_transaction_sound(connection: Connection) -> bool:
    """Whether the server is in a transaction of this connection that has not failed. Asks nobody; only if the driver
    `uses_libpq`."""
    driver: Any = connection.connection.driver_connection
    return bool(driver.pgconn.transaction_status == IN_TRANSACTION)


IN_TRANSACTION = 2
"""libpq's PQTRANS_INTRANS."""


def has_schemas(dialect: Dialect) -> bool:
    """Whether a database has schemas in it, made with CREATE SCHEMA: PostgreSQL."""
    return dialect.name == "postgresql"


def has_time_zones(dialect: Dialect) -> bool:
    """Whether a column can hold an instant with its time zone: PostgreSQL's timestamptz."""
    return dialect.name == "postgresql"


def has_longtext(dialect: Dialect) -> bool:
    """Whether TEXT ends at 64 KiB, and LONGTEXT holds more: MySQL and MariaDB."""
    return dialect.name in MYSQL


def is_mariadb(dialect: Dialect) -> bool:
    """Whether this is MariaDB, by either name of the dialect; under "mysql" it is known once a connection was made."""
    return bool(getattr(dialect, "is_mariadb", False)) or dialect.name == "mariadb"


def exact_collation(dialect: Dialect) -> str:
    """Of MySQL and MariaDB: the collation that compares texts by their characters alone, with spaces at the end.

    The two have none in common: for utf8mb4_bin, "a " equals "a".
    """
    return "utf8mb4_nopad_bin" if is_mariadb(dialect) else "utf8mb4_0900_bin"


def sets_isolation_by_statement(dialect: Dialect) -> bool:
    """Whether SQLAlchemy's `isolation_level` is a statement at each checkout of a connection: MySQL and MariaDB."""
    return dialect.name in MYSQL


def set_isolation(dialect: Dialect) -> str | None:
    """The isolation level that somebody has set in the database (of the server, a database or a role), as the first
    connection of this dialect found it. None for the level that the server has by itself."""
    level = getattr(dialect, "default_isolation_level", None)
    by_itself = "REPEATABLE READ" if dialect.name in MYSQL else "READ COMMITTED"
    return None if level in (None, by_itself, "READ UNCOMMITTED") else str(level)


def server_uptime(connection: Connection) -> float | None:
    """Seconds since the database server started; None where there is no server, or where it does not say."""
    name = connection.dialect.name
    if name == "postgresql":
        age = func.extract("epoch", func.statement_timestamp() - func.pg_postmaster_start_time())
        return float(connection.scalar(select(age)) or 0.0)
    if name in MYSQL:
        status = table(
            "GLOBAL_STATUS", column("VARIABLE_NAME"), column("VARIABLE_VALUE"), schema=_status_schema(connection)
        )
        uptime = connection.scalar(select(status.c.VARIABLE_VALUE).where(status.c.VARIABLE_NAME == "UPTIME"))
        return None if uptime is None else float(uptime)
    return None


def _status_schema(connection: Connection) -> str:
    return "information_schema" if is_mariadb(connection.dialect) else "performance_schema"


def try_session_lock(connection: Connection, key: bytes) -> bool:
    """Whether this session has the lock of `key` (8 bytes), which it takes if nobody has it; again and again is
    harmless. The server ends it with the connection. False where there are no such locks: SQLite."""
    name = connection.dialect.name
    if name == "postgresql":
        number = cast(int.from_bytes(key, "big", signed=True), BigInteger)
        return bool(connection.scalar(select(func.pg_try_advisory_lock(number))))
    if name in MYSQL:
        return connection.scalar(select(func.get_lock(f"async-task-{key.hex()}", 0))) == 1
    return False


def limit_session(connection: Connection, seconds: float) -> None:
    """On MySQL and MariaDB: until `unlimit_session`, the server ends a transaction of this session that idles, or a
    statement that runs, for longer than `seconds` (whole ones). MySQL has the limit for idling only.

    Without it a frozen process would keep its row locked for ever. On PostgreSQL the statement that locks the row sets
    the limit, for its transaction only: behind a pooler the next transaction may have another session.
    """
    if connection.dialect.name in MYSQL:
        _set_session(connection, max(1, int(seconds)), max(1, int(seconds)))


def disconnect(connection: Connection) -> None:
    """Cut `connection` off from its server, from another thread than the one that uses it.

    On PostgreSQL (psycopg) a statement that waits for a lock is also canceled: a server that waits does not notice that
    its client is gone, and keeps its locks. Other servers notice once they have the lock. We send MySQL no KILL: behind
    a pooler the connection id may be another session's.
    """
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name == "sqlite":
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


def unlimit_session(connection: Connection) -> None:
    """Undo `limit_session`, before the connection returns to its pool."""
    if connection.dialect.name in MYSQL:
        _set_session(connection, "DEFAULT", "DEFAULT")


def _set_session(connection: Connection, idle: int | str, statement: int | str) -> None:
    """Limit how long a transaction idles and a statement runs, in seconds; MySQL has no limit for a write."""
    if is_mariadb(connection.dialect):
        limits = f"idle_transaction_timeout = {idle}, max_statement_time = {statement}"
    else:
        limits = f"wait_timeout = {idle}"
    connection.exec_driver_sql(f"SET SESSION {limits}")
