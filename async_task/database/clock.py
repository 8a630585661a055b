"""Instants: aware datetimes in UTC, as each database keeps them; and the database's clock, the only one that counts."""

import datetime as dt
from typing import Any

from sqlalchemy import Float, func, literal, literal_column
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import DateTime, TypeDecorator

MYSQL = ("mysql", "mariadb")
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
FIRST, LAST = -62_135_596_800.0, 253_402_300_799.0
"""Seconds since then: the first and the last whole ones that a datetime can name."""


class Instant(TypeDecorator[dt.datetime]):
    """An aware datetime, in UTC wherever it comes out. Naive ones are refused.

    PostgreSQL: timestamptz. MySQL and MariaDB: DATETIME(6) in UTC. SQLite: text in UTC, with microseconds, so that
    comparing texts compares instants.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

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
        return moment if dialect.name == "postgresql" else moment.replace(tzinfo=None)

    def process_result_value(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | None:
        return None if value is None else self.aware(value)

    @staticmethod
    def aware(value: dt.datetime) -> dt.datetime:
        """What a driver gave, in UTC."""
        return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)


class UnreadInstant(TypeDecorator[Any]):
    """The same, to be read from a column as cheap as it can be had: their values can be put in order, and `read`.

    PostgreSQL: seconds since 1970. As the text of a timestamptz it costs both sides several times as much. Elsewhere:
    what the driver gives.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        return Instant().load_dialect_impl(dialect)

    def column_expression(self, column: Any) -> Any:
        return _unread(column, self)

    @staticmethod
    def read(value: Any) -> dt.datetime:
        """A value of such a column, in UTC; the nearest instant to one that cannot be read, as `infinity`."""
        if not isinstance(value, float):
            return Instant.aware(value)
        return EPOCH + dt.timedelta(seconds=min(max(value, FIRST), LAST))

    @staticmethod
    def between(earlier: Any, later: Any) -> dt.timedelta:
        """From one value to another of the same row; also to one so late, or early, that it cannot be read."""
        seconds: Any = later - earlier
        return dt.timedelta(seconds=min(max(seconds, FIRST), LAST)) if isinstance(seconds, float) else seconds


class _unread(FunctionElement[Any]):
    inherit_cache = True

    def __init__(self, column: Any, type_: UnreadInstant) -> None:
        super().__init__(column)
        self.type = type_


@compiles(_unread)
def _as_the_driver_gives_it(element: _unread, compiler: SQLCompiler, **kw: Any) -> str:
    (column,) = element.clauses
    return compiler.process(column, **kw)


@compiles(_unread, "postgresql")
def _as_seconds(element: _unread, compiler: SQLCompiler, **kw: Any) -> str:
    (column,) = element.clauses
    return compiler.process(func.date_part(literal_column("'epoch'"), column), **kw)


class _Clock(FunctionElement[dt.datetime]):
    """The database's clock, moved by a number of seconds (0 by default)."""

    type = Instant()

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__(*([literal(seconds, Float(53))] if seconds else []))


class clock_now(_Clock):
    """The instant at which the value is written: never that of the transaction's begin, which may be long ago."""

    name = "written"
    inherit_cache = True


class statement_now(_Clock):
    """The instant at which the statement began: one value for all rows that are compared with it."""

    name = "compared"
    inherit_cache = True


def _plus(clock: Any, element: _Clock) -> Any:
    for seconds in element.clauses:
        return clock + func.make_interval(0, 0, 0, 0, 0, 0, seconds)
    return clock


@compiles(clock_now)
@compiles(clock_now, "postgresql")
def _written(element: clock_now, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(_plus(func.clock_timestamp(type_=Instant()), element), **kw)


@compiles(statement_now)
@compiles(statement_now, "postgresql")
def _compared(element: statement_now, compiler: SQLCompiler, **kw: Any) -> str:
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
    # The three zeros make a text as long as those SQLAlchemy writes: '.123' would sort before '.123000'.
    shifts = [func.printf(literal_column("'%+.3f seconds'"), seconds) for seconds in element.clauses]
    clock = func.strftime(literal_column("'%Y-%m-%d %H:%M:%f000'"), literal_column("'now'"), *shifts)
    return compiler.process(clock, **kw)
