"""The kinds of column that our tables are made of, the same on every database."""

import os
import time
import uuid
from typing import Any

from sqlalchemy import BigInteger, Dialect, Integer, String, Text, TypeDecorator, Uuid
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.types import TypeEngine

from async_task.database.clock import MYSQL, Instant

__all__ = ["Counter", "HiddenText", "Identifier", "Instant", "LongText", "Name", "RowNumber", "SealedText"]


class _ExactText(mysql.VARCHAR):
    """A VARCHAR that is compared by its characters alone, also by the spaces at its end."""


@compiles(_ExactText, *MYSQL)
def _exact_text(text: _ExactText, compiler: Any, **_kw: Any) -> str:
    # The two have no such collation in common: utf8mb4_bin takes "a " for "a".
    dialect = compiler.dialect
    is_mariadb = getattr(dialect, "is_mariadb", False) or dialect.name == "mariadb"
    collation = "utf8mb4_nopad_bin" if is_mariadb else "utf8mb4_0900_bin"
    return f"VARCHAR({text.length}) CHARACTER SET utf8mb4 COLLATE {collation}"


class _Hidden(str):
    """What is sent to the database as it is, and never shown: SQLAlchemy puts parameters into errors and logs."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'(hidden)'"


class HiddenText(TypeDecorator[str]):
    """A text of any length, which SQLAlchemy does not show."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(_mysql_text()) if dialect.name in MYSQL else super().load_dialect_impl(dialect)

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else _Hidden(value)


def Name(length: int) -> String:
    """A short text that is compared exactly: `Token` is neither `token` nor `Token `, on MySQL too."""
    return String(length).with_variant(_ExactText(length), *MYSQL)


def LongText() -> Text:
    """A text of any length, and any character."""
    return Text().with_variant(_mysql_text(), *MYSQL)


def SealedText() -> TypeEngine[str]:
    """The same for a call's arguments, which no error and no log of SQLAlchemy shall show."""
    return HiddenText()


def _mysql_text() -> mysql.LONGTEXT:
    return mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin")


def Identifier() -> Uuid:  # type: ignore[type-arg]
    """A UUID: native on PostgreSQL, 32 hexadecimal digits elsewhere (also on MariaDB, whatever the dialect's name)."""
    return Uuid().with_variant(Uuid(native_uuid=False), *MYSQL)


def RowNumber() -> TypeEngine[int]:
    """A number that the database gives to each row of an append-only table."""
    return BigInteger().with_variant(Integer(), "sqlite")


def Counter() -> Integer:
    """A count that starts at 0."""
    return Integer()


def uuid7() -> uuid.UUID:
    """A UUID of version 7 (RFC 9562): 48 bits of Unix milliseconds, then 12 bits of the rest of the millisecond, so
    that those of one process sort by the order of their making to a quarter of a microsecond, then 62 random bits."""
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    bits = (milliseconds & 0xFFFF_FFFF_FFFF) << 80 | 0x7 << 76 | (rest * 4096 // 1_000_000) << 64
    return uuid.UUID(int=bits | 0b10 << 62 | int.from_bytes(os.urandom(8)) >> 2)
