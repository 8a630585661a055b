"""The column types of our tables, with the same meaning on every database."""

import contextlib
import datetime as dt
import os
import time
import uuid
from array import array
from typing import Any

from sqlalchemy import BigInteger, Dialect, Integer, String, Text, TypeDecorator, Uuid
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.types import TypeEngine

from async_task.database.clock import Instant
from async_task.database.dialects import MYSQL, exact_collation, has_longtext

__all__ = ["Counter", "HiddenText", "Identifier", "Instant", "LongText", "Name", "RowNumber", "SealedText"]


class _ExactText(mysql.VARCHAR):
    """A VARCHAR that is compared by its characters alone, with the spaces at its end."""

    # Alembic's autogenerate writes a type as the name of its module and its repr: as that of SQLAlchemy's own type, so
    # that a revision needs nothing of this library.
    __module__ = mysql.VARCHAR.__module__

    def __repr__(self) -> str:
        is_mariadb = "getattr(op.get_context().dialect, 'is_mariadb', False)"
        collation = f"'utf8mb4_nopad_bin' if {is_mariadb} else 'utf8mb4_0900_bin'"
        return f"VARCHAR({self.length}, charset='utf8mb4', collation={collation})"

    def __reduce__(self) -> Any:  # a pickle looks for the class in its module
        return _exact, (self.length,)


def _exact(length: int) -> _ExactText:
    return _ExactText(length)


@compiles(_ExactText, *MYSQL)
def _exact_text(text: _ExactText, compiler: Any, **_kw: Any) -> str:
    return f"VARCHAR({text.length}) CHARACTER SET utf8mb4 COLLATE {exact_collation(compiler.dialect)}"


class _Hidden(str):
    """A text whose repr is hidden: SQLAlchemy puts the repr of parameters into errors and logs."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'(hidden)'"


class HiddenText(TypeDecorator[str]):
    """A text of any length that SQLAlchemy does not show in errors and logs."""

    impl = Text
    cache_ok = True
    __module__ = "sqlalchemy.types"  # for autogenerate, as that of `_ExactText`

    def __repr__(self) -> str:
        return f"Text().with_variant(mysql.{_mysql_text()!r}, 'mysql', 'mariadb')"

    def __reduce__(self) -> Any:
        return SealedText, ()

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(_mysql_text()) if has_longtext(dialect) else super().load_dialect_impl(dialect)

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else _Hidden(value)


def Name(length: int) -> String:
    """A short text that is compared exactly: `Token` is neither `token` nor `Token `, on MySQL too."""
    return String(length).with_variant(_ExactText(length), *MYSQL)


def LongText() -> Text:
    """A text of any length, with any characters."""
    return Text().with_variant(_mysql_text(), *MYSQL)


def SealedText() -> TypeEngine[str]:
    """The same for the arguments of a call, which must not be shown in errors and logs."""
    return HiddenText()


def _mysql_text() -> mysql.LONGTEXT:
    return mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin")


def Identifier() -> Uuid:  # type: ignore[type-arg]
    """A UUID: native on PostgreSQL, 32 hexadecimal digits elsewhere. MariaDB's native one is not used, because the
    dialect "mysql" does not have it for the same server."""
    return Uuid().with_variant(Uuid(native_uuid=False), *MYSQL)


def RowNumber() -> TypeEngine[int]:
    """An auto-incremented number, for the rows of append-only tables."""
    return BigInteger().with_variant(Integer(), "sqlite")


def Counter() -> Integer:
    """A count that starts at 0."""
    return Integer()


def uuid7() -> uuid.UUID:
    """A UUID of version 7 (RFC 9562): 48 bits of Unix milliseconds, 12 bits of fractions of a millisecond, 62 random
    bits. Those of one thread sort by the time of creation, also while a test has stopped the clock."""
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    tick = milliseconds << 12 | rest * 4096 // 1_000_000
    _latest[:] = tick, _latest[1] + 1 if tick == _latest[0] else 0
    tick += _latest[1]
    bits = (tick >> 12 & 0xFFFF_FFFF_FFFF) << 80 | 0x7 << 76 | (tick & 0xFFF) << 64
    return uuid.UUID(int=bits | 0b10 << 62 | _random_bits() >> 2)


_latest = [0, 0]
"""The tick of the last id, and how many others were made at that tick."""

_random_ahead: dict[int, list[int]] = {}
"""By process: a forked one must not have those of its parent."""


def _random_bits() -> int:
    """64 random bits. To ask the system for many at once takes a fifth of the time."""
    process = os.getpid()
    if ahead := _random_ahead.get(process):
        with contextlib.suppress(IndexError):  # another thread was faster
            return ahead.pop()
    one, *others = array("Q", os.urandom(8 * 256))
    _random_ahead[process] = others
    return one


CLOCK_SLACK = dt.timedelta(days=2)
"""By how much the clock that made an id may differ from the database's, which wrote `created_at`."""


def first_uuid7(when: dt.datetime, slack: dt.timedelta) -> uuid.UUID:
    """The lowest UUID of version 7 that is made `slack` after `when`."""
    milliseconds = int((when.timestamp() + slack.total_seconds()) * 1000)
    return uuid.UUID(int=min(max(milliseconds, 0), 0xFFFF_FFFF_FFFF) << 80)


def tick_of(when: dt.datetime | uuid.UUID) -> int:
    """An instant, or the time of a UUID of version 7, in 4096ths of a millisecond since 1970."""
    if isinstance(when, uuid.UUID):
        return when.int >> 80 << 12 | when.int >> 64 & 0xFFF
    return int(when.timestamp() * 1000) << 12


def uuid7_at(tick: int) -> uuid.UUID:
    """The lowest UUID of version 7 that is made at that tick."""
    return uuid.UUID(int=(tick >> 12) << 80 | (0x7000 | tick & 0xFFF) << 64)
