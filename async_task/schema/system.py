"""The database of an application as a whole: versions, sizes of tables, and what holds back their cleaning."""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, select
from sqlalchemy.exc import DBAPIError

from async_task.database.clock import statement_now
from async_task.database.driver_errors import is_unavailable
from async_task.database.server_facts import (
    OldestTransaction,
    TableSize,
    database_size,
    oldest_transaction,
    table_sizes,
)
from async_task.database.server_versions import server_of
from async_task.schema.tables import SCHEMA_VERSION
from async_task.schema.versions import tables_of, version_on

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SystemInfo:
    """The database as a whole. `server`, `server_version`: as "PostgreSQL" and "15.4". `schema_version`: that of the
    tables, None without any; `schema_needed`: the one that this library needs. `tables`: that of the attempts first.
    `database_bytes`: of the whole database, with what is not of this library. `oldest_transaction`: what holds back the
    removal of dead rows. `read_at`: the database's clock.

    What the server does not say, or the user of the database has no right to ask, is None.
    """

    server: str
    server_version: str | None
    schema_version: int | None
    schema_needed: int
    tables: tuple[TableSize, ...]
    database_bytes: int | None
    oldest_transaction: OldestTransaction | None
    read_at: dt.datetime


def system_of(engine: Engine, model: type[Any]) -> SystemInfo:
    """Each question in a short transaction of its own: one that is refused leaves the others."""
    with engine.begin() as connection:
        now = connection.scalar(select(statement_now()))
    assert now is not None
    tables = tables_of(model)
    sizes = _asked(engine, partial(table_sizes, tables=tables)) or {}
    server, server_version = server_of(engine.dialect)
    return SystemInfo(
        server=server,
        server_version=server_version,
        schema_version=_asked(engine, partial(version_on, model=model)),
        schema_needed=SCHEMA_VERSION,
        tables=tuple(sizes.get(one.fullname, TableSize(one.fullname)) for one in tables),
        database_bytes=_asked(engine, database_size),
        oldest_transaction=_asked(engine, oldest_transaction),
        read_at=now,
    )


def _asked(engine: Engine, ask: Callable[[Connection], T]) -> T | None:
    try:
        with engine.begin() as connection:
            return ask(connection)
    except DBAPIError as error:
        if is_unavailable(error):
            raise
        return None
