"""What a session has or is given on its server: locks of its own and limits of time; and since when the server runs."""

from sqlalchemy import BigInteger, cast, column, func, select, table
from sqlalchemy.engine import Connection

from async_task.database.dialects import MYSQL, is_mariadb


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
