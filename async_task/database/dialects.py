"""What PostgreSQL, MySQL/MariaDB and SQLite do differently. Only exceptions stand here: all other SQL is the same."""

import contextlib
import os
import socket
import threading
from typing import Any

from sqlalchemy import (
    BigInteger,
    Float,
    Sequence,
    Table,
    cast,
    column,
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

from async_task.database.clock import MYSQL


def sequence_of(attempts: Table) -> Sequence:
    """PostgreSQL's sequence from which an attempts table numbers its keyed rows; it lies in the table's schema."""
    return Sequence(f"sq_{attempts.name}_order", schema=attempts.schema)


class numbered(FunctionElement[int]):
    """The `seq` of a row of this key that is inserted now: past that of every row of the key that is committed. Nobody
    waits for anybody for it, so that rows of transactions that are open at the same time have no order among them."""

    name = "numbered"
    inherit_cache = True
    type = BigInteger()

    def __init__(self, attempts: Table, key: str) -> None:
        line = attempts.alias("line")
        same = (line.c.status == literal_column("'pending'"), line.c.order_key == literal(key, line.c.order_key.type))
        last = select(func.coalesce(func.max(line.c.seq), 0)).where(*same).correlate(None).scalar_subquery()
        super().__init__(sequence_of(attempts).next_value(), last)


@compiles(numbered)
@compiles(numbered, "postgresql")
def _numbered(element: numbered, compiler: SQLCompiler, **kw: Any) -> str:
    following, _ = element.clauses
    return compiler.process(following, **kw)


@compiles(numbered, "mysql")
@compiles(numbered, "mariadb")
def _mysql_number(element: numbered, compiler: SQLCompiler, **kw: Any) -> str:
    # Begins anew, higher, when the server does. Without the server's own number, with which it is too large for us.
    return compiler.process(func.uuid_short().op("&")(literal_column(str(2**56 - 1))), **kw)


@compiles(numbered, "sqlite")
def _sqlite_number(element: numbered, compiler: SQLCompiler, **kw: Any) -> str:
    # There is one writer at a time. The clock (in milliseconds) is for rows that come back: they are older than others.
    _, last = element.clauses
    clock = cast(func.julianday(literal_column("'now'"), type_=Float()) * literal_column("86400000"), BigInteger)
    return compiler.process(func.max(last + literal_column("1"), clock), **kw)


def take_numbers(connection: Connection, attempts: Table, count: int) -> list[int] | None:
    """The `seq` of `count` rows that are inserted now; None where each row's INSERT must ask for its own."""
    if connection.dialect.name != "postgresql":
        return None
    following = select(sequence_of(attempts).next_value()).select_from(func.generate_series(1, count))
    return list(connection.scalars(following))


def locks_rows(dialect: Dialect) -> bool:
    """Whether a single row can be locked. SQLite locks the whole database, so there every call is leased."""
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
    """Whether one statement can probe each priority, lock what it finds, update it and return it: PostgreSQL."""
    return dialect.name == "postgresql"


def locks_neighbours(dialect: Dialect) -> bool:
    """Whether a statement that locks some rows locks others beside them for a moment: MySQL and MariaDB. Then SKIP
    LOCKED may find nothing although something is there."""
    return dialect.name in MYSQL


def copies_rows(dialect: Dialect) -> bool:
    """Whether rows can be written with COPY: PostgreSQL through psycopg 3."""
    return dialect.name == "postgresql" and dialect.driver in ("psycopg", "psycopg_async")


def pipelines(connection: Connection) -> bool:
    """Whether statements can be sent without waiting for the one before, past SQLAlchemy: PostgreSQL through psycopg 3.
    Not where somebody listens to what SQLAlchemy does, or wants other schemas put into it."""
    dialect = connection.dialect
    if dialect.name != "postgresql" or dialect.driver != "psycopg" or dialect.is_async:
        return False
    from psycopg import Pipeline

    is_heard = any(getattr(connection.dispatch, name) for name in HEARD)
    is_changed = is_heard or connection.get_execution_options().get("schema_translate_map")
    return not is_changed and Pipeline.is_supported()


def chains(connection: Connection) -> bool:
    """Whether, besides, a COMMIT can go with statements of the transaction that follows it. Not where somebody wants to
    say something in each transaction."""
    version: Any = connection.dialect.server_version_info
    heard: Any = connection.dispatch
    return pipelines(connection) and version >= (12,) and not (heard.begin or heard.commit)


HEARD = ("before_execute", "after_execute", "before_cursor_execute", "after_cursor_execute")
"""Events of a connection that tell of statements, and may change them."""


def notifies(dialect: Dialect) -> bool:
    """Whether a transaction can tell other processes that it committed: PostgreSQL's NOTIFY."""
    return dialect.name == "postgresql"


def server_uptime(connection: Connection) -> float | None:
    """Seconds since the database server started; None where there is no server, or where it does not tell."""
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
    return "information_schema" if getattr(connection.dialect, "is_mariadb", False) else "performance_schema"


def limit_session(connection: Connection, seconds: float) -> None:
    """On MySQL and MariaDB, let the server end a transaction of this session when it idles, or one of its statements
    runs, longer than so many whole seconds; until `unlimit_session`. MySQL has the limit for idling only.

    A frozen process would otherwise hold the row, and what is to be swept, for ever. PostgreSQL is told by what locks,
    for its transaction only: a pooler in between may give the next one another session.
    """
    if connection.dialect.name in MYSQL:
        _set_session(connection, max(1, int(seconds)), max(1, int(seconds)))


def disconnect(connection: Connection) -> None:
    """End the conversation with the server from outside of the thread that leads it. What waits in PostgreSQL for a
    lock is canceled (psycopg); elsewhere the server notices when it has it, and keeps what was locked until then."""
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name == "sqlite":
        driver.close()
        return
    cancel = driver.pgconn.get_cancel() if hasattr(driver, "pgconn") else None
    end = socket.socket(fileno=os.dup(_descriptor_of(driver)))
    try:
        end.shutdown(socket.SHUT_RDWR)
    finally:
        end.close()
    if cancel is not None:  # on a thread: a network that is down would keep whoever waits for it
        threading.Thread(target=_canceled, args=(cancel,), name="async-task-cancel", daemon=True).start()


def _canceled(cancel: Any) -> None:
    with contextlib.suppress(Exception):
        cancel.cancel()


def _descriptor_of(driver: Any) -> int:
    """Of the socket of a driver's connection: each has it in another place."""
    if hasattr(driver, "fileno"):  # psycopg
        return int(driver.fileno())
    if hasattr(driver, "_sock"):  # PyMySQL
        return int(driver._sock.fileno())
    transport = driver._writer.transport if hasattr(driver, "_writer") else driver._transport  # aiomysql, asyncpg
    return int(transport.get_extra_info("socket").fileno())


def unlimit_session(connection: Connection) -> None:
    """Take back what `limit_session` left on the session, before the connection returns to its pool."""
    if connection.dialect.name in MYSQL:
        _set_session(connection, "DEFAULT", "DEFAULT")


def _set_session(connection: Connection, idle: int | str, statement: int | str) -> None:
    """How long a transaction may idle and a statement run, in seconds. MySQL has no limit for statements that write."""
    if getattr(connection.dialect, "is_mariadb", False):
        limits = f"idle_transaction_timeout = {idle}, max_statement_time = {statement}"
    else:
        limits = f"wait_timeout = {idle}"
    connection.exec_driver_sql(f"SET SESSION {limits}")
