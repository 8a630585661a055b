"""What PostgreSQL, MySQL/MariaDB and SQLite do differently. All other SQL is the same.

Each capability is a function with a name. Other packages ask these, and never for the name of a dialect or driver.
"""

import functools
from collections.abc import Collection
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Select,
    Table,
    Update,
    bindparam,
    delete,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.util.concurrency import in_greenlet

MYSQL = ("mysql", "mariadb")
"""The names of both dialects, for `@compiles` and `with_variant`."""

S = TypeVar("S", Select[Any], Update)


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
    """Whether statements can be sent past SQLAlchemy, without waiting for each answer: PostgreSQL through psycopg 3, on
    an Engine or, in a greenlet, on an AsyncEngine.

    So it is not done where the user listens to SQLAlchemy's statements, or lets SQLAlchemy translate schemas.
    """
    dialect = connection.dialect
    if dialect.name != "postgresql" or not uses_libpq(dialect) or (dialect.is_async and not in_greenlet()):
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
    listens to begin or commit, where a user may set something for each transaction. Our own listeners are not
    told of such a COMMIT: `call_committed` tells them."""
    version: Any = connection.dialect.server_version_info
    listeners: Any = connection.dispatch
    is_heard = listeners.begin or (listeners.commit and has_commit_listeners(connection))
    return pipelines(connection) and version >= (12,) and not is_heard


def call_committed(connection: Connection) -> None:
    """Tell our own listeners of a commit of this connection of which SQLAlchemy does not know."""
    listeners: Any = connection.dispatch
    for one in listeners.commit:
        if one in CALLED_AFTER_COMMIT:
            one(connection)


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
    """Whether the server is in a transaction of this connection that has not failed; False too if the pool has its
    connection back. Asks nobody; only if the driver `uses_libpq`."""
    dbapi: Any = connection.connection.dbapi_connection  # unlike `driver_connection`, still there when it was detached
    if dbapi is None:
        return False
    driver: Any = connection.dialect.get_driver_connection(dbapi)
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
