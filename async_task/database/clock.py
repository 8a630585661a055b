"""Instants, which are aware datetimes in UTC, as each database stores them; and the database's clock.

Only the database's clock decides what is due, expired or orphaned.
"""

import datetime as dt
from typing import Any

from sqlalchemy import CHAR, ColumnElement, Float, String, cast, func, literal, literal_column
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TIMESTAMP, DateTime, TypeDecorator

from async_task.database.dialects import MYSQL, has_time_zones

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
FIRST, LAST = -62_135_596_800.0, 253_402_300_799.0
"""Seconds since the epoch: the first and the last whole ones that a datetime can hold."""


class Instant(TypeDecorator[dt.datetime]):
    """A column of aware datetimes. They are read in UTC; a naive one raises ValueError.

    PostgreSQL: timestamptz. MySQL and MariaDB: DATETIME(6) in UTC. SQLite: text in UTC, with microseconds, so that
    comparing texts compares instants.
    """

    impl = DateTime(timezone=True)
    cache_ok = True
    # Alembic's autogenerate writes a type as the name of its module and its repr: as that of SQLAlchemy's own type, so
    # that a revision needs nothing of this library.
    __module__ = "sqlalchemy.types"

    def __repr__(self) -> str:
        return "DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb')"

    def __reduce__(self) -> Any:  # a pickle looks for the class in its module
        return _instant, ()

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        if dialect.name in MYSQL:
            return dialect.type_descriptor(mysql.DATETIME(fsp=6))
        return dialect.type_descriptor(DateTime(timezone=True))

    def process_bind_param(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a naive datetime names no instant: give it a time zone")
        moment = value.astimezone(dt.UTC)
        return moment if has_time_zones(dialect) else moment.replace(tzinfo=None)

    def process_result_value(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | None:
        return None if value is None else self.aware(value)

    @staticmethod
    def aware(value: dt.datetime) -> dt.datetime:
        """A driver's datetime in UTC; a naive one is in UTC already."""
        return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)


def _instant() -> Instant:
    return Instant()


class UnreadInstant(TypeDecorator[Any]):
    """The same column, read as cheaply as possible: values can be compared, and become datetimes by `read`.

    PostgreSQL: seconds since 1970. A timestamptz as text costs server and client more: 16.6 us a claimed row, and 14.8
    as seconds. Elsewhere: what the driver returns.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        return Instant().load_dialect_impl(dialect)

    def column_expression(self, column: Any) -> Any:
        return _unread(column, self)

    @staticmethod
    def read(value: Any) -> dt.datetime:
        """A value of such a column, in UTC; for one that no datetime can hold, as `infinity`, the nearest instant."""
        if not isinstance(value, float):
            return Instant.aware(value)
        return EPOCH + dt.timedelta(seconds=min(max(value, FIRST), LAST))

    @staticmethod
    def between(earlier: Any, later: Any) -> dt.timedelta:
        """The time between two values of a row; also where no datetime can hold one of them."""
        seconds: Any = later - earlier
        return dt.timedelta(seconds=min(max(seconds, FIRST), LAST)) if isinstance(seconds, float) else seconds


class _unread(FunctionElement[Any]):
    inherit_cache = True

    def __init__(self, column: Any, type_: UnreadInstant) -> None:
        super().__init__(column)
        self.type = type_


@compiles(_unread)
def _as_the_driver_returns_it(element: _unread, compiler: SQLCompiler, **kw: Any) -> str:
    (column,) = element.clauses
    return compiler.process(column, **kw)


@compiles(_unread, "postgresql")
def _as_seconds(element: _unread, compiler: SQLCompiler, **kw: Any) -> str:
    (column,) = element.clauses
    return compiler.process(func.date_part(literal_column("'epoch'"), column), **kw)


class _Clock(FunctionElement[dt.datetime]):
    """The database's clock, moved by a number of seconds (0 by default), or by an expression. `is_text`: the number is
    a part of the statement's text and not a parameter, so that PostgreSQL may plan a prepared statement once."""

    type = Instant()

    def __init__(self, seconds: float | ColumnElement[float] = 0.0, *, is_text: bool = False) -> None:
        if isinstance(seconds, ColumnElement):
            super().__init__(seconds)
        else:
            super().__init__(*([literal(seconds, Float(53), literal_execute=is_text)] if seconds else []))


class clock_now(_Clock):
    """The instant at which the value is written; not the begin of the transaction, which may be long ago."""

    name = "clock_now"
    inherit_cache = True


class statement_now(_Clock):
    """The instant at which the statement began: the same for all rows that are compared with it."""

    name = "statement_now"
    inherit_cache = True


class seconds_until(FunctionElement[str]):
    """The seconds from the beginning of the statement to an instant, as text."""

    type = String()
    name = "seconds_until"
    inherit_cache = True


@compiles(seconds_until)
@compiles(seconds_until, "postgresql")
def _postgresql_seconds(element: seconds_until, compiler: SQLCompiler, **kw: Any) -> str:
    (instant,) = element.clauses
    left = func.date_part(literal_column("'epoch'"), instant - func.statement_timestamp())
    return compiler.process(cast(left, String()), **kw)


@compiles(seconds_until, "mysql")
@compiles(seconds_until, "mariadb")
def _mysql_seconds(element: seconds_until, compiler: SQLCompiler, **kw: Any) -> str:
    (instant,) = element.clauses
    micros: Any = func.timestampdiff(
        literal_column("MICROSECOND"), func.utc_timestamp(literal_column("6")), instant, type_=Float()
    )
    return compiler.process(cast(micros / literal_column("1000000"), CHAR()), **kw)


@compiles(seconds_until, "sqlite")
def _sqlite_seconds(element: seconds_until, compiler: SQLCompiler, **kw: Any) -> str:
    (instant,) = element.clauses
    days: Any = func.julianday(instant) - func.julianday(literal_column("'now'"))
    return compiler.process(cast(days * literal_column("86400.0"), String()), **kw)


def _plus(clock: Any, element: _Clock) -> Any:
    zeros: Any = [literal_column("0")] * 6  # years to minutes; in the text, because each parameter costs client time
    for seconds in element.clauses:
        return clock + func.make_interval(*zeros, seconds)
    return clock


@compiles(clock_now)
@compiles(clock_now, "postgresql")
def _postgresql_clock(element: clock_now, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(_plus(func.clock_timestamp(type_=Instant()), element), **kw)


@compiles(statement_now)
@compiles(statement_now, "postgresql")
def _postgresql_statement_clock(element: statement_now, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(_plus(func.statement_timestamp(type_=Instant()), element), **kw)


@compiles(clock_now, "mysql")
@compiles(clock_now, "mariadb")
@compiles(statement_now, "mysql")
@compiles(statement_now, "mariadb")
def _mysql_clock(element: _Clock, compiler: SQLCompiler, **kw: Any) -> str:
    clock: Any = func.utc_timestamp(literal_column("6"))
    for seconds in element.clauses:
        clock = func.timestampadd(literal_column("MICROSECOND"), func.round(seconds * literal_column("1000000")), clock)
    return compiler.process(clock, **kw)


@compiles(clock_now, "sqlite")
@compiles(statement_now, "sqlite")
def _sqlite_clock(element: _Clock, compiler: SQLCompiler, **kw: Any) -> str:
    # Three zeros make the text as long as those that SQLAlchemy writes: '.123' would sort before '.123000'.
    shifts = [func.printf(literal_column("'%+.3f seconds'"), seconds) for seconds in element.clauses]
    clock = func.strftime(literal_column("'%Y-%m-%d %H:%M:%f000'"), literal_column("'now'"), *shifts)
    return compiler.process(clock, **kw)


class held_in(FunctionElement[Any]):
    """An instant as a column of the user's holds it: `held_in(clock_now(), column)`. A column without a time zone holds
    UTC, whatever the time zone of the session; MySQL's TIMESTAMP holds an instant, in the words of the session."""

    name = "held_in"
    inherit_cache = True

    def __init__(self, instant: Any, column: Any) -> None:
        super().__init__(instant, column)
        self.type = column.type


class instant_in(FunctionElement[dt.datetime]):
    """The instant that such a column holds, which is read in UTC."""

    type = Instant()
    name = "instant_in"
    inherit_cache = True


@compiles(held_in)
@compiles(instant_in)
def _as_it_is(element: FunctionElement[Any], compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(next(iter(element.clauses)), **kw)


@compiles(held_in, "postgresql")
@compiles(instant_in, "postgresql")
def _in_utc(element: FunctionElement[Any], compiler: SQLCompiler, **kw: Any) -> str:
    both = [*element.clauses]
    one, column = both[0], both[-1]
    if not _is_naive(column, compiler.dialect):
        return compiler.process(one, **kw)
    return compiler.process(func.timezone(literal_column("'UTC'"), one), **kw)


@compiles(held_in, "mysql")
@compiles(held_in, "mariadb")
def _in_words_of_session(element: held_in, compiler: SQLCompiler, **kw: Any) -> str:
    one, column = element.clauses
    return compiler.process(_converted(one, UTC, SESSION) if _is_timestamp(column, compiler.dialect) else one, **kw)


@compiles(instant_in, "mysql")
@compiles(instant_in, "mariadb")
def _from_words_of_session(element: instant_in, compiler: SQLCompiler, **kw: Any) -> str:
    (column,) = element.clauses
    is_timestamp = _is_timestamp(column, compiler.dialect)
    return compiler.process(_converted(column, SESSION, UTC) if is_timestamp else column, **kw)


UTC, SESSION = "'+00:00'", "@@session.time_zone"


def _converted(instant: Any, zone: str, other: str) -> Any:
    return func.convert_tz(instant, literal_column(zone), literal_column(other))


def _is_naive(column: Any, dialect: Dialect) -> bool:
    return getattr(_plain_type(column, dialect), "timezone", None) is False


def _is_timestamp(column: Any, dialect: Dialect) -> bool:
    return isinstance(_plain_type(column, dialect), TIMESTAMP)


def _plain_type(column: Any, dialect: Dialect) -> Any:
    """The type on this database, under variants and the user's own TypeDecorators."""
    found = column.type.dialect_impl(dialect)
    while isinstance(found, TypeDecorator):
        found = found.load_dialect_impl(dialect).dialect_impl(dialect)
    return found
