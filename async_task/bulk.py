"""Many calls in one statement: the door for Core users, and for whoever writes down thousands."""

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import ClauseElement, Connection, Table, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from async_task.arrivals import arrive, arrive_by
from async_task.dialects import copies_rows, numbered, take_numbers, written
from async_task.errors import AsyncTaskError, InvalidArguments
from async_task.sessions import blocking_session
from async_task.writing import Draft, discriminator, named_draft, single_table

FEW = 3
"""So many rows are written one by one."""


def insert_many(model: type[Any], where: object, rows: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Write all rows in one statement, COPY through psycopg; answers their ids in the order of the rows.

    A session is flushed first. Raises IntegrityError for a used token, and what `create` raises, with the row's number.
    """
    mapper, table = single_table(model, "create_many")
    drafts = [_draft(number, row) for number, row in enumerate(rows)]
    session: Session | None = None
    if isinstance(where, Connection):
        connection = where
    else:
        session = blocking_session(where)
        session.flush()
        connection = session.connection(bind_arguments={"mapper": mapper})
    if not drafts:
        return []
    of_class, placed = discriminator(mapper), _numbered(connection, table, drafts)
    if len(placed) <= FEW:
        _insert_few(connection, table, [{**one.stamped(_from_now), **of_class} for one in placed])
    else:
        _write_many(connection, table, of_class, placed)
    counts = Counter(one.values["queue"] for one in drafts if one.is_due_at_once)
    if session is None:
        arrive_by(connection, table, counts)
    else:
        arrive(session, mapper, counts)
    return [one.values["id"] for one in drafts]


def _write_many(connection: Connection, table: Table, of_class: dict[str, Any], drafts: list[Draft]) -> None:
    now, may_copy = _clock_and_copy(connection, table)
    stamps = {**of_class, "created_at": now, "updated_at": now}
    values = [{"due_at": now, **one.stamped(lambda after: now + after), **stamps} for one in drafts]
    if may_copy and not _has_more_defaults(table, values[0]):
        _copy(connection, table, values)
    else:
        _insert(connection, table, values)


def _insert_few(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    """Each by itself, with the clock where it is written: asking for that first would be a statement more."""
    for row in rows:
        if any(isinstance(value, ClauseElement) for value in row.values()):
            connection.execute(table.insert().values(row))
        else:
            connection.execute(table.insert(), row)


def _from_now(after: dt.timedelta) -> Any:
    return written(after.total_seconds())


def _draft(number: int, row: Mapping[str, Any]) -> Draft:
    if not isinstance(row, Mapping):
        raise InvalidArguments(f"row {number}: takes a mapping of create()'s arguments, not {type(row).__name__}")
    try:
        return named_draft("create_many", row)
    except AsyncTaskError as error:
        raise type(error)(f"row {number}: {error}") from None


def _numbered(connection: Connection, table: Table, drafts: list[Draft]) -> list[Draft]:
    """With the places of those that have a key: as numbers, or each as what its INSERT asks the database for."""
    keyed = [one for one in drafts if one.order_key is not None]
    if not keyed:
        return drafts
    numbers: Iterable[Any] | None = take_numbers(connection, table, len(keyed))
    following = iter(numbers or [numbered(table, one.order_key or "") for one in keyed])
    places = [None if one.order_key is None else next(following) for one in drafts]
    unkeyed = {"order_key": None, "arrived": None}
    return [replace(one, values=unkeyed | one.values | {"seq": at}) for one, at in zip(drafts, places, strict=True)]


def _insert(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    plain = [row for row in rows if not isinstance(row.get("seq"), numbered)]
    if plain:
        connection.execute(table.insert(), plain)
    for row in rows:
        if isinstance(row.get("seq"), numbered):
            connection.execute(table.insert().values(row))


def _clock_and_copy(connection: Connection, table: Table) -> tuple[dt.datetime, bool]:
    """The database's clock, and whether rows may be written with COPY, which row-level security forbids."""
    if not copies_rows(connection.dialect) or connection.dialect.is_async:
        return connection.execute(select(written())).scalar_one(), False
    name = connection.dialect.identifier_preparer.format_table(table)
    secured = func.row_security_active(name)
    now, is_secured = connection.execute(select(written(), secured)).one()
    return now, not is_secured


def _has_more_defaults(table: Table, values: Mapping[str, Any]) -> bool:
    """Whether a column of the user's own wants a value that COPY would not ask for."""
    return any(one.name not in values and one.default is not None for one in table.columns)


def _copy(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    import psycopg

    preparer = connection.dialect.identifier_preparer
    columns = ", ".join(preparer.quote(name) for name in rows[0])
    statement = f"COPY {preparer.format_table(table)} ({columns}) FROM STDIN"
    driver: Any = connection.connection.driver_connection
    try:
        with driver.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row(tuple(row.values()))
    except psycopg.Error as error:
        raise DBAPIError.instance(
            statement, None, error, psycopg.Error, hide_parameters=True, dialect=connection.dialect
        ) from None
