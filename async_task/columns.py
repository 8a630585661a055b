"""The kinds of column that our tables are made of, the same on every database."""

from sqlalchemy import BigInteger, Integer, String, Text, Uuid
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeEngine

from async_task.dialects import MYSQL, Instant

__all__ = ["Counter", "Identifier", "Instant", "LongText", "Name", "RowNumber"]


def Name(length: int) -> String:
    """A short text that is compared exactly: on MySQL in a binary collation, so that `Token` is not `token`."""
    exact = mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin")
    return String(length).with_variant(exact, *MYSQL)


def LongText() -> Text:
    """A text of any length, and any character."""
    return Text().with_variant(mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin"), *MYSQL)


def Identifier() -> Uuid:  # type: ignore[type-arg]
    """A UUID: native on PostgreSQL, 32 hexadecimal digits elsewhere (also on MariaDB, whatever the dialect's name)."""
    return Uuid().with_variant(Uuid(native_uuid=False), *MYSQL)


def RowNumber() -> TypeEngine[int]:
    """A number that the database gives to each row of an append-only table."""
    return BigInteger().with_variant(Integer(), "sqlite")


def Counter() -> Integer:
    """A count that starts at 0."""
    return Integer()
