"""What a server tells of itself: its name, how large tables are, and which transaction is the oldest.

Each function asks one question, and raises SQLAlchemy's DBAPIError where the user has no right to ask it.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnClause,
    Connection,
    Table,
    TableClause,
    and_,
    column,
    func,
    literal_column,
    or_,
    select,
    table,
    type_coerce,
)

from async_task.database.clock import Instant
from async_task.database.dialects import MYSQL


@dataclass(frozen=True, slots=True)
class TableSize:
    """How large a table is, as the server estimates it. `name`: with its schema, where the model names one. `rows`, and
    `dead_rows` that vacuum has not removed yet; `bytes` without its indexes, and `index_bytes`. None: the server does
    not say, or there is no such table."""

    name: str
    rows: int | None = None
    bytes: int | None = None
    index_bytes: int | None = None
    dead_rows: int | None = None


@dataclass(frozen=True, slots=True)
class OldestTransaction:
    """The transaction that began first of those that are open, and so holds back the removal of dead rows. `pid`: the
    id of its process or connection on the server. `state`: what it does, in the server's words. `since`: its begin."""

    pid: int
    state: str | None
    application_name: str | None
    since: dt.datetime


def table_sizes(connection: Connection, tables: Sequence[Table]) -> Mapping[str, TableSize]:
    """By full name, of those of these tables that exist. Empty for SQLite, which would read all of its file."""
    if connection.dialect.name == "postgresql":
        return _sizes_of_postgresql(connection, tables)
    return _sizes_of_mysql(connection, tables) if connection.dialect.name in MYSQL else {}


def database_size(connection: Connection) -> int | None:
    """How many bytes the database has; None for MySQL and MariaDB."""
    if connection.dialect.name == "postgresql":
        return int(connection.scalar(select(func.pg_database_size(func.current_database()))) or 0)
    if connection.dialect.name == "sqlite":
        pages, page = (_table(f"pragma_{name}", name) for name in ("page_count", "page_size"))
        found = select(pages.c.page_count * page.c.page_size).select_from(pages.join(page, literal_column("1") == 1))
        return int(connection.scalar(found) or 0)
    return None


def oldest_transaction(connection: Connection) -> OldestTransaction | None:
    """Of all sessions but this one: on PostgreSQL of this database, on MySQL and MariaDB of the server. None where
    there is none, and for SQLite."""
    if connection.dialect.name == "postgresql":
        found = _oldest_of_postgresql()
    elif connection.dialect.name in MYSQL:
        found = _oldest_of_mysql()
    else:
        return None
    row = connection.execute(found).first()
    return None if row is None else OldestTransaction(*row)


# PostgreSQL


def _sizes_of_postgresql(connection: Connection, tables: Sequence[Table]) -> Mapping[str, TableSize]:
    classes, stats = _table("pg_class", "oid", "reltuples"), _table("pg_stat_all_tables", "relid", "n_dead_tup")
    oid = classes.c.oid
    facts: Any = select(classes.c.reltuples, func.pg_table_size(oid), func.pg_indexes_size(oid), stats.c.n_dead_tup)
    both = facts.select_from(classes.outerjoin(stats, stats.c.relid == oid))
    sizes = {}
    for one in tables:
        row = connection.execute(both.where(oid == func.to_regclass(_quoted(connection, one)))).first()
        if row is not None:
            rows, *others = row
            counted = None if rows < 0 else int(rows)  # it was never analyzed
            sizes[one.fullname] = TableSize(one.fullname, counted, *others)
    return sizes


def _quoted(connection: Connection, one: Table) -> str:
    quote = connection.dialect.identifier_preparer.quote
    return ".".join(quote(name) for name in (connection.schema_for_object(one), one.name) if name)


def _oldest_of_postgresql() -> Any:
    sessions = _table(
        "pg_stat_activity", "pid", "state", "application_name", "xact_start", "datname", "backend_xid", "backend_xmin",
        "backend_type",
    )  # fmt: skip
    c = sessions.c
    holds_back = and_(
        c.datname == func.current_database(),
        c.pid != func.pg_backend_pid(),
        c.xact_start.is_not(None),
        or_(c.backend_xid.is_not(None), c.backend_xmin.is_not(None)),
        c.backend_type != "autovacuum worker",
    )
    since = _instant(c.xact_start)
    return select(c.pid, c.state, c.application_name, since).where(holds_back).order_by(c.xact_start).limit(1)


# MySQL and MariaDB


def _sizes_of_mysql(connection: Connection, tables: Sequence[Table]) -> Mapping[str, TableSize]:
    facts = _table("TABLES", "table_schema", "table_name", "table_rows", "data_length", "index_length", schema=SCHEMA)
    c = facts.c
    sizes = {}
    for one in tables:
        schema = connection.schema_for_object(one) or func.database()
        mine = (c.table_schema == schema, c.table_name == one.name)
        row: Any = connection.execute(select(c.table_rows, c.data_length, c.index_length).where(*mine)).first()
        if row is not None:
            sizes[one.fullname] = TableSize(one.fullname, *row)
    return sizes


def _oldest_of_mysql() -> Any:
    c = _table("INNODB_TRX", "trx_mysql_thread_id", "trx_state", "trx_started", schema=SCHEMA).c
    since = _instant(func.convert_tz(c.trx_started, "SYSTEM", "+00:00"))  # in the time zone of the server
    facts = select(c.trx_mysql_thread_id, c.trx_state, literal_column("NULL"), since)
    return facts.where(c.trx_mysql_thread_id != func.connection_id()).order_by(c.trx_started).limit(1)


SCHEMA = "information_schema"


def _table(name: str, *columns: str, schema: str | None = None) -> TableClause:
    named: list[ColumnClause[Any]] = [column(one) for one in columns]
    return table(name, *named, schema=schema)


def _instant(value: Any) -> Any:
    return type_coerce(value, Instant())
