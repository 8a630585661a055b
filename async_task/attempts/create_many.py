"""Many calls in one statement: for users of Core, and for thousands of calls at once."""

import datetime as dt
import functools
import itertools
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Self

from sqlalchemy import (
    Boolean,
    ClauseElement,
    Column,
    Connection,
    Enum,
    Insert,
    Integer,
    String,
    Table,
    Uuid,
    func,
    select,
)
from sqlalchemy.orm import Mapper, Session

from async_task.attempts import unwritten
from async_task.attempts.alike_rows import are_many_alike, has_plain_arguments
from async_task.attempts.ambient import check_writable
from async_task.attempts.copied_lines import copy_lines, fields
from async_task.attempts.create import single_table
from async_task.attempts.draft import Draft, Forms, from_now, named_draft
from async_task.attempts.own_columns import own_values_by_column
from async_task.attempts.telemetry import Writing, is_traced, traced
from async_task.database.clock import Instant, clock_now
from async_task.database.dialects import copies_rows
from async_task.database.numbering import numbered, take_numbers
from async_task.database.sessions import asyncio_kinds, blocking_session, write_arguments
from async_task.errors import AsyncTaskError, ConfigurationError, InvalidArguments
from async_task.schema.columns import HiddenText
from async_task.wakeup.after_commit import call_after_commit
from async_task.wakeup.commit_hooks import wake_after_commit, wake_after_connection_commit

PIECE = 10_000
"""Rows of one COPY that is made while they are checked."""
FEW = 3
"""Up to this number of rows, each is written by an INSERT of its own."""
Row = dict[str, Any]


def insert_many(model: type[Any], where: object, rows: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Write all rows in one statement, with psycopg by COPY; return their ids in the order of the rows.

    A session is flushed first. Raises IntegrityError for a used token, and what `create` raises, with the row's number.
    """
    mapper, table = single_table(model, "create_many")
    if isinstance(where, asyncio_kinds("AsyncConnection")):
        raise ConfigurationError("create_many does I/O: await connection.run_sync(Attempt.create_many, rows)")
    _check_rows(rows)
    made = _drafts(mapper, table, rows)
    are_alike = are_many_alike(rows) and not (unwritten.is_off or is_traced(table)) and _has_only_begun(where)
    drafts = list(itertools.islice(made, 1 if are_alike else None))
    are_plain = are_alike and has_plain_arguments(drafts[0])
    if not are_plain:
        drafts += made
    if unwritten.is_off:
        return [one.id for one in drafts]
    session: Session | None = None
    if isinstance(where, Connection):
        connection = where
    else:
        session = blocking_session(where)
        check_writable(session)
        session.flush()
        connection = session.connection(bind_arguments=write_arguments(mapper))
    if not drafts:
        return []
    written = _copy_while_checked(connection, table, drafts[0], made) if are_plain else None
    if written is None:
        drafts += made
        traced(table, "create_many", drafts, partial(_write_traced, session, connection, mapper, drafts))
        written = Written.of(drafts)
    if session is None:
        wake_after_connection_commit(connection, table, written.due)
    else:
        wake_after_commit(session, mapper, written.due, written.due_ids)
    return written.ids


def _check_rows(rows: Any) -> None:
    if isinstance(rows, (str, bytes, Mapping)) or not isinstance(rows, Iterable):
        raise InvalidArguments(f"create_many takes an iterable of rows, not {type(rows).__name__}")


class Written:
    """The calls that were written: their `ids`, and of those that are due at once, the `due_ids` and how many there are
    by queue. No drafts: the garbage collector took a third of the time to walk over them."""

    def __init__(self) -> None:
        self.ids: list[uuid.UUID] = []
        self.due_ids: list[uuid.UUID] = []
        self.due: Counter[str] = Counter()

    @classmethod
    def of(cls, drafts: Iterable[Draft]) -> Self:
        made = cls()
        for one in drafts:
            made.add(one)
        return made

    def add(self, one: Draft) -> None:
        self.ids.append(one.id)
        if one.is_due_at_once:
            self.due_ids.append(one.id)
            self.due[one.form.queue] += 1


def _has_only_begun(where: object) -> bool:
    """Whether a transaction is open in which nothing waits to be flushed: a refused row must not change either."""
    if isinstance(where, Connection):
        return where.in_transaction()
    session = blocking_session(where)
    return session.in_transaction() and not (session.new or session.dirty or session.deleted)


def _write_traced(
    session: Session | None, connection: Connection, mapper: Mapper[Any], drafts: list[Draft], writing: Writing | None
) -> None:
    table: Any = mapper.local_table
    context = None if writing is None else writing.trace_context
    _write(connection, table, drafts, {} if context is None else {"trace_context": context})
    if writing is not None and session is not None:
        call_after_commit(session, mapper, writing.committed)
    elif writing is not None:
        writing.committed()


def _write(connection: Connection, table: Table, drafts: list[Draft], shared: Row) -> None:
    """`shared`: values that all rows have in common, beside those of the drafts."""
    placed = _numbered(connection, table, drafts)
    if len(placed) <= FEW:
        few = [one.stamped(from_now).given_values | dict(one.columns) | shared for one in placed]
        _insert_few(connection, table, few)
        return
    for alike in _by_columns(placed):
        _write_many(connection, table, alike, shared)


def _drafts(mapper: Mapper[Any], table: Table, rows: Iterable[Mapping[str, Any]]) -> Iterator[Draft]:
    forms: Forms = {}
    without = own_values_by_column(mapper, table, {})
    for number, row in enumerate(rows):
        if type(row) is not dict and not isinstance(row, Mapping):
            raise InvalidArguments(f"row {number}: takes a mapping of create()'s arguments, not {type(row).__name__}")
        try:
            made = named_draft("create_many", row, forms)
            if made.columns or without:
                own = own_values_by_column(mapper, table, made.columns) if made.columns else without
                made = made._replace(columns=own)
        except AsyncTaskError as error:
            raise type(error)(f"row {number}: {error}") from None
        yield made


def _by_columns(drafts: list[Draft]) -> list[list[Draft]]:
    """Neighbours with values for the same columns of the user's own together: another column gets its default. Not all
    such rows: the order of the INSERTs is the order of an order key."""
    return [list(alike) for _, alike in itertools.groupby(drafts, lambda one: one.columns.keys())]


def _numbered(connection: Connection, table: Table, drafts: list[Draft]) -> list[Draft]:
    """With the numbers of those that have an order key; or with the expressions by which their INSERTs get one."""
    keyed = [one for one in drafts if one.order_key is not None]
    if not keyed:
        return drafts
    numbers = take_numbers(connection, table, len(keyed))
    if numbers is None:
        return [one.numbered(table) for one in drafts]
    following = iter(numbers)
    return [one if one.order_key is None else one._replace(seq=next(following)) for one in drafts]


@functools.lru_cache(maxsize=64)
def _insert_into(table: Table) -> Insert:
    """The same statement each time: SQLAlchemy's cache finds it sooner than a new one."""
    return table.insert()


def _insert_few(connection: Connection, table: Table, rows: list[Row]) -> None:
    """Each by itself, with the clock in the statement: to ask for the clock first would be one statement more."""
    for row in rows:
        if any(isinstance(value, ClauseElement) for value in row.values()):
            connection.execute(_insert_into(table).values(row))
        else:
            connection.execute(_insert_into(table), row)


def _write_many(connection: Connection, table: Table, drafts: list[Draft], shared: Row) -> None:
    now, may_copy = _clock_and_copy(connection, table)
    stamped = [one.stamped(lambda after: now + after) for one in drafts]
    stamps, first = {"created_at": now, "updated_at": now, **shared}, stamped[0]
    is_same = all(one.columns is first.columns for one in stamped)  # without values of the user's
    if may_copy and is_same and _may_be_copied(table, first.values | stamps | dict(first.columns)):
        _copy(connection, table, first, stamped, now, stamps | dict(first.columns))
    else:
        rows = [one.form.values | one.own_values(now) | stamps | dict(one.columns) for one in stamped]
        _insert(connection, table, rows, given=frozenset(first.columns))


def _copy_while_checked(
    connection: Connection, table: Table, first: Draft, following: Iterator[Draft]
) -> "Written | None":  # fmt: skip
    """Copy these drafts as they are made: the server reads the first ones while others are checked. None where that is
    not possible. If a row is refused, all is undone, and the transaction stays usable."""
    driver: Any = connection.connection.driver_connection
    if not copies_rows(connection.dialect) or connection.dialect.is_async or driver.autocommit:
        return None
    now, may_copy = _clock_and_copy(connection, table)
    stamps = {"created_at": now, "updated_at": now, **first.columns}
    if not (may_copy and _may_be_copied(table, first.values | stamps)):
        return None
    written, refused = Written(), list[AsyncTaskError]()

    def stamped() -> Iterator[Draft]:
        try:
            for one in itertools.chain((first,), following):
                written.add(one)
                yield one.stamped(lambda after: now + after)
        except AsyncTaskError as error:  # raised here, it would end the COPY with an error in the server's log
            refused.append(error)

    with connection.begin_nested():
        # In pieces: the time of checking counts for the server's limit of a statement.
        for _, piece in itertools.groupby(stamped(), lambda _: len(written.ids) // PIECE):
            _copy(connection, table, first, piece, now, stamps)
        for error in refused:
            raise error
    return written


def _copy(
    connection: Connection, table: Table, first: Draft, stamped: Iterable[Draft], now: dt.datetime, stamps: Row
) -> None:  # fmt: skip
    columns = [*first.own_values(now), *first.form.values, *stamps]
    copy_lines(connection, table, columns, _lines(stamped, now, stamps))


def _lines(drafts: Iterable[Draft], now: dt.datetime, stamps: Row) -> Iterator[str]:
    """Rows for COPY; the text that rows of one form have in common is made once."""
    due, ends = fields([now]), dict[int, str]()
    for one in drafts:
        if (end := ends.get(id(one.form))) is None:
            end = ends[id(one.form)] = fields([*one.form.values.values(), *stamps.values()]) + "\n"
        yield f"{fields(one.own_values(due).values())}\t{end}"


def _insert(connection: Connection, table: Table, rows: list[Row], *, given: frozenset[str]) -> None:
    """`given`: columns that the user gave values for, also where all are None."""
    plain = [row for row in rows if not isinstance(row["seq"], numbered)]
    if plain:
        used = [name for name in plain[0] if name in given or any(row[name] is not None for row in plain)]
        connection.execute(table.insert(), [{name: row[name] for name in used} for row in plain])
    for row in rows:
        if isinstance(row["seq"], numbered):
            connection.execute(table.insert().values(row))


def _clock_and_copy(connection: Connection, table: Table) -> tuple[dt.datetime, bool]:
    """The database's clock, and whether rows may be written with COPY: row-level security forbids that, and SQLAlchemy
    does not translate schemas in it."""
    translated = connection.get_execution_options().get("schema_translate_map")
    if not copies_rows(connection.dialect) or connection.dialect.is_async or translated:
        return connection.execute(select(clock_now())).scalar_one(), False
    name = connection.dialect.identifier_preparer.format_table(table)
    # As a value, and not in the text of a statement: there the preparer doubles each %.
    secured = func.row_security_active(name.replace("%%", "%"))
    now, is_secured = connection.execute(select(clock_now(), secured)).one()
    return now, not is_secured


def _may_be_copied(table: Table, values: Mapping[str, Any]) -> bool:
    """Whether COPY writes what an INSERT would: no column of the user's own has a default or type that needs
    SQLAlchemy."""
    return all(_is_sent_as_it_is(one) if one.name in values else one.default is None for one in table.columns)


def _is_sent_as_it_is(one: Column[Any]) -> bool:
    return isinstance(one.type, _AS_THEY_ARE) and (one.name == "status" or not isinstance(one.type, Enum))


_AS_THEY_ARE = (Boolean, HiddenText, Instant, Integer, String, Uuid)
